"""Serve a bundle to clients of openpi's websocket protocol, and to robots on other machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Serve a bundle to clients of openpi's websocket protocol, and to robots on other machines.")


@app.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help='The bundle.')],
    host: Annotated[
        str, typer.Option(help='Address to listen on; others than this machine need a token.')
    ] = '127.0.0.1',
    port: Annotated[int, typer.Option(min=0, max=65535, help='0: a free one.')] = 8000,
    token_file: Annotated[
        Path | None, typer.Option(help='File with the token that clients send as `Authorization: Api-Key TOKEN`.')
    ] = None,
    key: Annotated[
        list[str] | None, typer.Option(help='KEY=NAME: what a client calls a camera, `state` or `prompt`; repeat.')
    ] = None,
    prompt: Annotated[str, typer.Option(help='Instruction for clients that send none.')] = '',
    backend: Annotated[str, typer.Option(help='auto, torch, onnx or tensorrt.')] = 'auto',
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of the engine; 0: the engine's choice.")] = 0,
    seed: Annotated[int, typer.Option(help='Of the noise.')] = 0,
    denoise_steps: Annotated[
        int, typer.Option(min=0, help='From noise to actions; 0: what the bundle recommends.')
    ] = 0,
    allow_untrained: Annotated[bool, typer.Option(help='Serve a bundle whose action head was never trained.')] = False,
) -> None:
    """Answers observations with chunks of actions, absolute and in SI units, until it is interrupted."""
    from ki_common.errors import KiError
    from ki_vla.policy.inference import load_policy
    from ki_vla.remote.observation_keys import ObservationKeys
    from ki_vla.remote.server import PolicyServer, check_address

    keys = dict(each.split('=', 1) for each in key or [] if '=' in each)
    if len(keys) != len(key or []):
        raise KiError(f'--key {" ".join(key or [])}: write --key KEY=NAME, each key once.')
    token = '' if token_file is None else token_file.read_text(encoding='utf-8').strip()
    check_address(host, token)  # before a large policy is loaded
    policy = load_policy(
        bundle, backend, threads=threads, seed=seed, denoise_steps=denoise_steps, allow_untrained=allow_untrained
    )
    with policy, PolicyServer(policy, ObservationKeys(policy.contract, keys, prompt), host, port, token) as server:
        server.warm_up()
        typer.echo(f'{policy.policy_id} ({policy.backend}) at ws://{host}:{server.port}; Ctrl-C ends it')
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo('ended')
