"""What a checkpoint's config.json says and its tensors do not: kind of policy, horizon, how the state is read.

openpi writes `action_horizon`; lerobot writes `chunk_size` and `type`. The horizon changes no tensor's shape, so a
checkpoint would run with a wrong one without an error.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ki_common.files import read_json
from ki_vla.errors import VlaError

HORIZONS = ('chunk_size', 'action_horizon')


@dataclass(frozen=True)
class CheckpointMetadata:
    """What is said; None where it is not.

    Attributes:
        path: the config.json, whether or not it is there.
        kind: lerobot's type of policy.
        field: the name of the horizon.
        horizon: steps of a chunk that the policy was trained with.
        state_in_prompt: whether the state is written into the prompt, openpi's discrete_state_input.
    """

    path: Path
    kind: str | None = None
    field: str | None = None
    horizon: int | None = None
    state_in_prompt: bool | None = None


def read_metadata(source: str | Path) -> CheckpointMetadata:
    """Read the config.json in a checkpoint's folder, or beside its file.

    Raises:
        VlaError: it cannot be read, or its horizon is no number of steps.
    """
    source = Path(source)
    path = (source if source.is_dir() else source.parent) / 'config.json'
    if not path.is_file():
        return CheckpointMetadata(path)
    said = read_json(path, VlaError, 'give the configuration of the policy, or remove the file')
    field = next((name for name in HORIZONS if said.get(name) is not None), None)
    horizon = None if field is None else said[field]
    if horizon is not None and (not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1):
        raise VlaError(f'{path}: not a readable policy configuration ({field} is {horizon!r}, no number of steps).')
    in_prompt = said.get('discrete_state_input')
    return CheckpointMetadata(
        path, said.get('type'), field, horizon, in_prompt if isinstance(in_prompt, bool) else None
    )
