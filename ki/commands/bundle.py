"""Bundles: look into one, check it against a robot, import a public checkpoint, write one back."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help='Policies on disk: show, check, import a public checkpoint, export the weights.')


class CheckpointKind(str, Enum):
    """Checkpoints that can be imported."""

    paligemma = 'paligemma'
    openpi = 'openpi'
    lerobot = 'lerobot'


class Layout(str, Enum):
    """Layouts that weights can be written in."""

    openpi = 'openpi'
    lerobot = 'lerobot'


Folder = Annotated[Path, typer.Argument(help='The bundle.')]
RobotName = Annotated[str, typer.Option(help='A contract by name or path.')]


@app.command()
def show(bundle: Folder, robot: RobotName = '') -> None:
    """Verifies every hash and prints what the policy is; with --robot, refuses one that it does not fit."""
    from rich.console import Console

    from ki_robot.contract.contract import load_contract
    from ki_vla.policy.bundle import load_bundle

    found = load_bundle(bundle)
    config, contract = found.config, found.contract
    codec = found.processor.codec
    rows = {
        'policy': found.policy_id,
        'model': f'{config.name}, {config.vision.image_size} px, {config.horizon} steps, state as {config.state_repr}',
        'robot': f'{contract.name} at {contract.rate_hz:g} Hz, {len(contract.actions)} action columns',
        'cameras': ', '.join(contract.camera_names),
        'action tokens': 'none' if codec is None else type(codec).__name__,
        'serving': ', '.join(f'{name} {value}' for name, value in found.serving.to_dict().items()),
        'recipe': found.recipe.get('name', '-'),
        **{f'from {key}': value for key, value in found.provenance.items()},
    }
    console = Console(soft_wrap=True, highlight=False, markup=False)
    width = max(map(len, rows))
    for name, value in rows.items():
        console.print(f'{name:<{width}}  {value}')
    if robot:
        found.check(load_contract(robot))
        console.print(f'fits the robot {robot}')


@app.command('import')
def import_(
    kind: Annotated[CheckpointKind, typer.Argument(help='Whose layout the checkpoint has.')],
    source: Annotated[Path, typer.Argument(help='Folder or .safetensors file of the checkpoint.')],
    bundle: Folder,
    robot: RobotName,
    stats: Annotated[Path, typer.Option(help="openpi's norm_stats.json for this robot.")],
    tokenizer: Annotated[Path, typer.Option(help='A Gemma or PaliGemma tokenizer.json, or its folder.')],
    fast: Annotated[Path | None, typer.Option(help='Folder of a FAST tokenizer in the public layout.')] = None,
    name: Annotated[str, typer.Option(help="The policy's name; the bundle folder's unless given.")] = '',
    bf16: Annotated[bool, typer.Option('--bf16', help='Store the weights in bfloat16.')] = False,
    overwrite: Annotated[bool, typer.Option('--overwrite', help='Replace a bundle that is there.')] = False,
) -> None:
    """Makes a bundle of a local checkpoint; every tensor is accounted for, or nothing is written."""
    import torch

    from ki_robot.contract.contract import load_contract
    from ki_vla.importers.policy import import_policy

    made, report = import_policy(
        kind.value, source, bundle, name=name or bundle.name, contract=load_contract(robot), stats=stats,
        tokenizer=tokenizer, fast=fast, dtype=torch.bfloat16 if bf16 else torch.float32, overwrite=overwrite,
    )  # fmt: skip
    typer.echo(report)
    for name in ('horizon', 'state'):
        if name in made.provenance:
            typer.echo(f'{name}: {made.provenance[name]}')
    typer.echo(made.policy_id)


@app.command()
def weights(
    bundle: Folder,
    folder: Annotated[Path, typer.Argument(help='Where to write.')],
    layout: Annotated[Layout, typer.Option(help='Whose layout.')] = Layout.openpi,
    bf16: Annotated[bool, typer.Option('--bf16', help='Write bfloat16.')] = False,
) -> None:
    """Writes a bundle's weights and statistics in openpi's or lerobot's layout."""
    import torch

    from ki_vla.importers.policy import export_policy
    from ki_vla.policy.bundle import load_bundle

    dtype = torch.bfloat16 if bf16 else torch.float32
    typer.echo(f'written: {export_policy(load_bundle(bundle), folder, layout.value, dtype=dtype)}')


@app.command()
def untrained(
    bundle: Folder,
    robot: RobotName,
    seed: Annotated[int, typer.Option(help='Of the weights.')] = 0,
    overwrite: Annotated[bool, typer.Option('--overwrite', help='Replace a bundle that is there.')] = False,
) -> None:
    """Makes a bundle with random weights for a robot, to try a set-up with; it is for dry runs, never for motion."""
    from ki_robot.contract.contract import load_contract
    from ki_vla.policy.untrained import write_untrained

    typer.echo(write_untrained(bundle, load_contract(robot), seed, overwrite).policy_id)
