"""What a checkpoint says of itself, in its config.json or by its public name, and its tensors do not.

The horizon, and whether the state stands in the prompt, change no tensor's shape: a checkpoint would run with a wrong
one without an error. openpi's JAX folders say neither; openpi's PyTorch converter writes `action_horizon`; lerobot
says nearly all (see `lerobot_files`). What nobody says is a question (see `questions`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki_common.errors import shown
from ki_common.files import read_json
from ki_vla.errors import VlaError

HORIZONS = ('chunk_size', 'action_horizon')
KINDS = ('pi0', 'pi05')
OTHER_FAMILIES = {
    'smolvla': 'SmolVLA, whose backbone is SmolVLM2 and not PaliGemma',
    'pi0_fast': 'pi0-FAST, which has no action expert',
}


@dataclass(frozen=True)
class CheckpointMetadata:
    """What is said; None where it is not.

    Attributes:
        path: the config.json, whether or not it is there.
        kind: lerobot's type of policy.
        field: the name of the horizon.
        horizon: steps of a chunk that the policy was trained with.
        state_in_prompt: whether the state is written into the prompt, openpi's discrete_state_input.
        said: the whole table.
    """

    path: Path
    kind: str | None = None
    field: str | None = None
    horizon: int | None = None
    state_in_prompt: bool | None = None
    said: dict[str, Any] | None = None


@dataclass(frozen=True)
class PublicPolicy:
    """What openpi's configuration of one public checkpoint says (openpi, src/openpi/training/config.py).

    Attributes:
        horizon: action_horizon.
        state_in_prompt: discrete_state_input; None for pi0, whose state is no text.
        asset: which statistics; None where a base model has those of several robots.
        relative: per action column, whether the policy says differences to the measured state; None for base models,
            where that depends on the robot.
    """

    horizon: int = 50
    state_in_prompt: bool | None = None
    asset: str | None = None
    relative: tuple[bool, ...] | None = None


_ALOHA = PublicPolicy(asset='trossen', relative=((True,) * 6 + (False,)) * 2)
_LIBERO = 'physical-intelligence/libero'
PUBLIC_POLICIES: dict[str, PublicPolicy] = {
    'pi0_base': PublicPolicy(),
    'pi05_base': PublicPolicy(state_in_prompt=True),
    'pi0_droid': PublicPolicy(10, asset='droid', relative=(False,) * 8),
    'pi05_droid': PublicPolicy(15, True, 'droid', (False,) * 8),
    'pi05_libero': PublicPolicy(10, False, _LIBERO, (False,) * 7),
    'pi0_libero': PublicPolicy(asset=_LIBERO, relative=(True,) * 6 + (False,)),
    'pi0_aloha_towel': _ALOHA,
    'pi0_aloha_tupperware': _ALOHA,
    'pi0_aloha_pen_uncap': _ALOHA,
    'pi0_aloha_sim': PublicPolicy(relative=(False,) * 14),
}


def read_metadata(source: str | Path) -> CheckpointMetadata:
    """Read the config.json in a checkpoint's folder, or beside its file.

    Raises:
        VlaError: it cannot be read, its horizon is no number of steps, or it is of another family of policies.
    """
    source = Path(source)
    path = (source if source.is_dir() else source.parent) / 'config.json'
    if not path.is_file():
        return CheckpointMetadata(path)
    said = read_json(path, VlaError, 'give the configuration of the policy, or remove the file')
    kind = said.get('type')
    if kind is not None and kind not in KINDS:
        what = OTHER_FAMILIES.get(str(kind), f'a policy of another family ({shown(kind)})')
        raise VlaError(f'{path}: type is {shown(kind)}: this is {what}; {" and ".join(KINDS)} can be imported.')
    field = next((name for name in HORIZONS if said.get(name) is not None), None)
    horizon = None if field is None else said[field]
    if horizon is not None and (not isinstance(horizon, int) or isinstance(horizon, bool) or horizon < 1):
        raise VlaError(f'{path}: not a readable policy configuration ({field} is {horizon!r}, no number of steps).')
    in_prompt = said.get('discrete_state_input')
    if in_prompt is not None and not isinstance(in_prompt, bool):
        raise VlaError(f'{path}: discrete_state_input is {shown(in_prompt)}; write true or false.')
    return CheckpointMetadata(path, kind, field, horizon, in_prompt, said)
