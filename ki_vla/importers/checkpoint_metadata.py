"""What a checkpoint's config.json says that its tensors do not show: kind, horizon, how the state is read.

openpi writes `action_horizon`, lerobot `chunk_size` and `type`. A checkpoint that was fine-tuned for another horizon
has tensors of the same shapes and would run, wrongly, with any.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ki_common.files import read_json
from ki_vla.errors import VlaError

HORIZONS = ('chunk_size', 'action_horizon')


@dataclass(frozen=True)
class Described:
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


def describe(source: str | Path) -> Described:
    """Read the config.json in a checkpoint's folder, or beside its file.

    Raises:
        VlaError: it cannot be read, or its horizon is no number of steps.
    """
    source = Path(source)
    path = (source if source.is_dir() else source.parent) / 'config.json'
    if not path.is_file():
        return Described(path)
    said = read_json(path, VlaError, 'give the configuration of the policy, or remove the file')
    field = next((name for name in HORIZONS if said.get(name) is not None), None)
    horizon = None if field is None else said[field]
    if horizon is not None and (not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1):
        raise VlaError(f'{path}: not a readable policy configuration ({field} is {horizon!r}, no number of steps).')
    in_prompt = said.get('discrete_state_input')
    return Described(path, said.get('type'), field, horizon, in_prompt if isinstance(in_prompt, bool) else None)
