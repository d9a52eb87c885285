"""Bundles: look into one, check it against a robot, import a public checkpoint, write one back."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from ki.support.progress import progress

app = typer.Typer(help='Policies on disk: show, check, import a public checkpoint, export the weights.')


class CheckpointKind(str, Enum):
    """Checkpoints that can be imported."""

    paligemma = 'paligemma'
    openpi = 'openpi'
    lerobot = 'lerobot'


class YesNo(str, Enum):
    """An answer."""

    yes = 'yes'
    no = 'no'


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
    source: Annotated[
        str, typer.Argument(help='Folder or .safetensors file, Hugging Face id (with @REVISION), or gs://... .')
    ],
    bundle: Folder,
    robot: RobotName,
    tokenizer: Annotated[
        str, typer.Option(help='A Gemma or PaliGemma tokenizer.json, its folder, or a Hugging Face id.')
    ],
    stats: Annotated[
        Path | None,
        typer.Option(help="openpi's norm_stats.json or the file of `ki data stats`; else what the checkpoint brings."),
    ] = None,
    asset: Annotated[str | None, typer.Option(help='Which of several statistics in assets/.')] = None,
    public_name: Annotated[
        str | None, typer.Option(help='Public openpi checkpoint whose configuration it was trained with.')
    ] = None,
    horizon: Annotated[int | None, typer.Option(min=1, help='Steps of a chunk that it was trained with.')] = None,
    state_in_prompt: Annotated[
        YesNo | None, typer.Option(help='Whether it was trained with the state in its prompt.')
    ] = None,
    pad_state: Annotated[
        YesNo | None, typer.Option(help='Whether lerobot 0.4 trained it, which fills the state up to 32 numbers.')
    ] = None,
    camera: Annotated[
        list[str] | None, typer.Option(help='VIEW=CAMERA: which camera stands for a view of the checkpoint; repeat.')
    ] = None,
    fast: Annotated[Path | None, typer.Option(help='Folder of a FAST tokenizer in the public layout.')] = None,
    name: Annotated[str, typer.Option(help="The policy's name; the bundle folder's unless given.")] = '',
    bf16: Annotated[bool, typer.Option('--bf16', help='Store the weights in bfloat16.')] = False,
    overwrite: Annotated[bool, typer.Option('--overwrite', help='Replace a bundle that is there.')] = False,
) -> None:
    """Makes a bundle of a public checkpoint; every tensor is accounted for, or nothing is written.

    What the checkpoint does not say is asked: the error names the option that answers.
    """
    import torch

    from ki_robot.contract.contract import load_contract
    from ki_vla.importers.policy import import_policy
    from ki_vla.importers.questions import Answers
    from ki_vla.importers.sources import TOKENIZER_FILES, find_source

    contract = load_contract(robot)
    answers = Answers(horizon, _yes(state_in_prompt), _yes(pad_state), _pairs(camera or []), asset, public_name)
    with progress('fetched, MB') as line:
        found = find_source(source, progress=lambda done, total, file: line.to(done // 10**6, total // 10**6, file))
    words = find_source(tokenizer, TOKENIZER_FILES).folder
    made = import_policy(
        kind.value, found, bundle, name=name or bundle.name, contract=contract, stats=stats, tokenizer=words,
        fast=fast, answers=answers, dtype=torch.bfloat16 if bf16 else torch.float32, overwrite=overwrite,
    )  # fmt: skip
    typer.echo(made.report)
    for subject, text in made.said.items():
        typer.echo(f'{subject}: {text}')
    typer.echo(made.bundle.policy_id)
    if kind is not CheckpointKind.paligemma:
        typer.echo(f'next: ki bundle check {bundle}')


def _yes(answer: YesNo | None) -> bool | None:
    return None if answer is None else answer is YesNo.yes


def _pairs(given: list[str]) -> dict[str, str]:
    """VIEW=CAMERA, several times, as a table."""
    from ki_common.errors import KiError

    pairs = dict(each.split('=', 1) for each in given if '=' in each)
    if len(pairs) != len(given):
        raise KiError(f'--camera {" ".join(given)}: write --camera VIEW=CAMERA, each view once.')
    return pairs


@app.command()
def check(
    bundle: Folder,
    golden: Annotated[
        Path | None, typer.Option(help="An answer from the origin's own code (.npz, see docs/how-to/openpi.md).")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help='How far an answer may be from it, in the range that columns are scaled to.')
    ] = 0.05,
    backend: Annotated[str, typer.Option(help='auto, torch, onnx or tensorrt.')] = 'auto',
) -> None:
    """Shows a policy one observation, and prints what it sees and answers by column; with --golden, holds it to that.

    Without --golden the observation is made up: shaded pictures and the mean state. Look at signs, units and which
    camera stands where before anything moves.
    """
    from ki.support.golden_tables import show_answer
    from ki_vla.policy.golden import answer, golden_observation, read_golden
    from ki_vla.policy.inference import load_policy

    with load_policy(bundle, backend, allow_untrained=True) as policy:
        processor = policy.bundle.processor
        shown = golden_observation(processor) if golden is None else read_golden(golden, processor)
        said = answer(policy, shown)
        show_answer(processor, shown, said)
        said.check(processor, tolerance)
    if said.error_HN is not None:
        typer.echo(f'agrees with {golden}: within {said.error_HN.max():.3g} of the scaled range')


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
