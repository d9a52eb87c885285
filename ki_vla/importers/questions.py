"""What a checkpoint does not say is asked, and answered by an option; nothing is assumed.

An answer comes from the option, from the checkpoint's own files, or from the name of a public checkpoint, in this
order, and two that differ are refused. Each becomes a line that the import prints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ki_robot.contract.contract import Contract
from ki_vla.errors import VlaError
from ki_vla.importers.checkpoint_metadata import PUBLIC_POLICIES, CheckpointMetadata, PublicPolicy

T = TypeVar('T')
# openpi's views, in the order of its models, and what our contracts call such a camera.
OPENPI_VIEWS = {'base_0_rgb': 'scene', 'left_wrist_0_rgb': 'wrist', 'right_wrist_0_rgb': 'wrist'}


@dataclass(frozen=True)
class Answers:
    """The options of `ki bundle import` that answer a question.

    Attributes:
        horizon: steps of a chunk that the policy was trained with.
        state_in_prompt: whether it was trained with the state in its prompt.
        pad_state: whether lerobot 0.4 trained it, which fills the state in the prompt up to 32 numbers.
        cameras: the checkpoint's name of a view -> the contract's name of the camera that stands for it.
        asset: which of several statistics in `assets/`.
        public_name: name of a public checkpoint whose configuration this one was trained with.
    """

    horizon: int | None = None
    state_in_prompt: bool | None = None
    pad_state: bool | None = None
    cameras: Mapping[str, str] = field(default_factory=dict)
    asset: str | None = None
    public_name: str | None = None

    @property
    def public(self) -> PublicPolicy | None:
        """What is known of the public checkpoint.

        Raises:
            VlaError: there is none of that name.
        """
        if self.public_name is None:
            return None
        if self.public_name not in PUBLIC_POLICIES:
            raise VlaError(
                f'--public-name {self.public_name}: not a public checkpoint that is known here; write one of '
                f'{", ".join(PUBLIC_POLICIES)}, or answer with --horizon and --state-in-prompt.'
            )
        return PUBLIC_POLICIES[self.public_name]


def horizon_of(metadata: CheckpointMetadata, answers: Answers, contract: Contract) -> tuple[int, str]:
    """Steps of a chunk, and how they are known.

    Raises:
        VlaError: nobody says, two say differently, or the robot's contract has another horizon.
    """
    public = answers.public
    steps, by = _settled(
        'horizon',
        {
            '--horizon': answers.horizon,
            f'{metadata.path.name}, {metadata.field}': metadata.horizon,
            f"openpi's configuration {answers.public_name}": None if public is None else public.horizon,
        },
        f'{_where(metadata)}: does not say how many steps the policy plans; write --horizon with the action_horizon or '
        f'chunk_size that it was trained with{_hint(metadata.path.parent)}.',
    )
    if steps != contract.horizon:
        raise VlaError(
            f'{_where(metadata)}: horizon is {steps} ({by}), and {contract.horizon} in the contract of '
            f'{contract.name}; a policy plans as many steps as it was trained with: set horizon to {steps} in the '
            f'contract, or take a checkpoint that was trained with {contract.horizon}.'
        )
    return steps, by


def state_in_prompt_of(metadata: CheckpointMetadata, answers: Answers) -> tuple[bool, str]:
    """Whether a pi0.5 reads the state in its prompt, and how that is known.

    Raises:
        VlaError: nobody says, or two say differently.
    """
    public = answers.public
    lerobot = metadata.kind == 'pi05'
    return _settled(
        'state in the prompt',
        {
            '--state-in-prompt': answers.state_in_prompt,
            f'{metadata.path.name}, discrete_state_input': metadata.state_in_prompt,
            "lerobot's pi05": True if lerobot else None,
            f"openpi's configuration {answers.public_name}": None if public is None else public.state_in_prompt,
        },
        f'{_where(metadata)}: does not say whether the state stands in the prompt (discrete_state_input in '
        f'openpi); write --state-in-prompt yes, or no for a policy that was trained without it, as pi05_libero '
        f'was{_hint(metadata.path.parent)}.',
    )


def check_relative(
    relative: Sequence[bool] | None, contract: Contract, by: str, names: Sequence[str] | None = None
) -> None:
    """Hold the contract's deltas to those that the policy was trained on.

    Raises:
        VlaError: another number of columns, or one that is absolute there and a delta here, or the other way round.
    """
    if relative is None:
        return
    if len(relative) != len(contract.actions):
        raise VlaError(
            f'{by}: the policy has {len(relative)} action columns, and the contract of {contract.name} '
            f'{len(contract.actions)} ({", ".join(contract.action_names)}); take a contract with its columns.'
        )
    for place, (column, is_relative) in enumerate(zip(contract.actions, relative, strict=True)):
        wanted = 'delta' if is_relative else 'absolute'
        if column.representation != wanted:
            theirs = f' ({names[place]})' if names and place < len(names) else ''
            raise VlaError(
                f'{by}: action column {place + 1}{theirs} is {wanted}, and {column.name} in the contract of '
                f'{contract.name} is {column.representation}; write representation: {wanted} there.'
            )


def check_cameras(views: Sequence[str], cameras: Mapping[str, str], contract: Contract, by: str) -> str:
    """Hold the contract's cameras to the views of the checkpoint, in its order; a line that says which is which.

    Args:
        views: the checkpoint's names, in model order.
        cameras: see `Answers.cameras`; empty: the names must be the same, or openpi's views in order.
        contract: the robot.
        by: who says what the views are.

    Raises:
        VlaError: another number, another order, or names that only the user can match.
    """
    ours = contract.camera_names
    unknown = [f'{theirs}={name}' for theirs, name in cameras.items() if theirs not in views or name not in ours]
    if unknown:
        raise VlaError(
            f'--camera {unknown[0]}: the views of {by} are {", ".join(views)}, and the cameras of {contract.name} '
            f'{", ".join(ours)}; write --camera VIEW=CAMERA.'
        )
    if cameras:
        matched = [(theirs, cameras[theirs]) for theirs in views if theirs in cameras]
    elif list(views) == list(OPENPI_VIEWS):
        _check_openpi_kinds(contract, by)
        matched = list(zip(views, ours, strict=False))
    elif sorted(views) == sorted(ours):
        matched = [(name, name) for name in views]
    else:
        examples = ' '.join(f'--camera {theirs}={name}' for theirs, name in zip(views, ours, strict=False))
        raise VlaError(
            f'{by}: has {len(views)} views ({", ".join(views)}), and {contract.name} has the cameras '
            f'{", ".join(ours)}; say which is which, for instance {examples}.'
        )
    if [name for _, name in matched] != list(ours):
        raise VlaError(
            f'{by}: its views stand in the order {", ".join(name for _, name in matched)}, and the cameras of '
            f'{contract.name} in the order {", ".join(ours)}; a model knows views by their order alone: order the '
            "contract's cameras so."
        )
    absent = [theirs for theirs in views if theirs not in {view for view, _ in matched}]
    line = ', '.join(f'{theirs} <- {name}' for theirs, name in matched)
    return f'{line}; absent: {", ".join(absent)}' if absent else line


def _check_openpi_kinds(contract: Contract, by: str) -> None:
    """Openpi's first view is a scene camera and the others stand on wrists."""
    if len(contract.cameras) > len(OPENPI_VIEWS):
        raise VlaError(
            f'{by}: has the views {", ".join(OPENPI_VIEWS)}, and {contract.name} has {len(contract.cameras)} cameras '
            f'({", ".join(contract.camera_names)}); leave the others out of the contract.'
        )
    for camera, (view, kind) in zip(contract.cameras, OPENPI_VIEWS.items(), strict=False):
        if camera.kind != kind:
            raise VlaError(
                f'{by}: view {view} is a {kind} camera, and the camera {camera.name} that stands in its place in the '
                f'contract of {contract.name} is of kind {camera.kind}; order the cameras so, or say that it is meant: '
                f'--camera {view}={camera.name} for each view.'
            )


def _settled(what: str, said: Mapping[str, T | None], question: str) -> tuple[T, str]:
    """The one answer that was given, and by whom."""
    given = {by: value for by, value in said.items() if value is not None}
    if not given:
        raise VlaError(question)
    by, value = next(iter(given.items()))
    for other, another in given.items():
        if another != value:
            raise VlaError(f'{what}: {by} says {_plain(value)}, and {other} {_plain(another)}; correct the wrong one.')
    return value, by


def _plain(value: object) -> str:
    return ('yes' if value else 'no') if isinstance(value, bool) else str(value)


def _where(metadata: CheckpointMetadata) -> Path:
    return metadata.path if metadata.path.is_file() else metadata.path.parent


def _hint(folder: Path) -> str:
    """Where the folder bears the name of a public checkpoint, it may be one."""
    names = [part for part in folder.resolve().parts[-2:] if part in PUBLIC_POLICIES]
    return f' (or --public-name {names[-1]}, if this is that public checkpoint)' if names else ''
