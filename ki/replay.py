"""Replay: a bag through the node's code, and how far the policy is from what was commanded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Replay a bag through the node's code: chunks, errors, seams, latency, with a report.")


@app.command()
def replay(
    bag: Annotated[Path, typer.Argument(help='A rosbag2 folder, .mcap or .db3.')],
    bundle: Annotated[str, typer.Option(help='Folder of the policy bundle.')] = '',
    robot: Annotated[str, typer.Option(help="Robot contract; without one, the bundle's own.")] = '',
    backend: Annotated[str, typer.Option(help='auto, torch, onnx, tensorrt or commissioning.')] = 'auto',
    out: Annotated[Path, typer.Option(help='Folder for replay.json and replay.html.')] = Path('out/replay'),
    mode: Annotated[str, typer.Option(help='latest, queue, temporal_ensemble or rtc.')] = 'rtc',
    execute_steps: Annotated[int, typer.Option(help='Steps after which the next chunk is planned.')] = 25,
    latency: Annotated[float, typer.Option(help="What an inference takes on the bag's clock [s].")] = 0.1,
    instruction: Annotated[str, typer.Option(help='Instead of the recorded one.')] = '',
    remap: Annotated[list[str] | None, typer.Option(help='TOPIC:=NAME: in the contract, in the bag.')] = None,
    max_chunks: Annotated[int, typer.Option(help='End after so many; 0: all.')] = 0,
    seed: Annotated[int, typer.Option(help='Of the noise.')] = 0,
    fail_above: Annotated[float, typer.Option(help='Exit with 1 when the mean error is larger; 0: never.')] = 0.0,
) -> None:
    """Reads BAG, runs the policy where the node would, and writes replay.json and replay.html."""
    from rich.console import Console

    from ki_policy_node import replay_report
    from ki_policy_node.backends import Wanted, check_fits, open_policy
    from ki_policy_node.errors import NodeError
    from ki_policy_node.inference import Timing
    from ki_policy_node.replay import Options
    from ki_policy_node.replay import replay as run
    from ki_robot.contract import load_contract

    names = {}
    for each in remap or []:
        topic, found, name = each.partition(':=')
        if not found:
            raise NodeError(f'--remap is {each!r}; write TOPIC:=NAME.')
        names[topic] = name
    timing = Timing(mode, execute_steps)
    named = load_contract(robot) if robot else None
    policy = open_policy(Wanted(backend, bundle, seed=seed), named, timing)
    try:
        contract = named or policy.contract
        check_fits(policy.policy_id, policy.contract, contract)
        policy.warm_up()
        options = Options(timing, round(latency * 1e9), 50_000_000, instruction, names, max_chunks)
        numbers = replay_report.write(run(bag, contract, policy, options), out)
    finally:
        policy.close()
    result = numbers['result']
    console = Console(soft_wrap=True)
    console.print(f'{result["chunks"]} chunks over {result["seconds"]:.1f} s of {bag}')
    for name, error in result['error'].items():
        console.print(
            f'  mean error of {name}: {error:.5g}' if error is not None else f'  {name}: no recorded commands'
        )
    console.print(f'report: {out / "replay.html"}')
    why = replay_report.failure(numbers, fail_above) if fail_above > 0.0 else ''
    if why:
        console.print(f'failed: {why}')
        raise typer.Exit(1)
