"""What clients call their inputs, and the contract's cameras and state that they are.

openpi's clients send flat or nested maps, each robot with names of its own; a camera of the contract is found under its
name in any of these forms. LIBERO's and DROID's names are known; others are given with `--key`. Their numbers are those
that the policy was trained on; where the contract maps columns (a gripper's opening in metres, say), so does this.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_common.errors import shown
from ki_robot.contract.contract import Contract
from ki_robot.messages.images import Image
from ki_robot.observation.observation import Observation
from ki_robot.policy_values import si_values
from ki_vla.errors import VlaError

STATES = ('state', 'observation/state', 'observation.state')
DROID_STATE = ('observation/joint_position', 'observation/gripper_position')
WORDS = ('prompt', 'task', 'observation/prompt')
STAMP, CARRY = 'stamp_ns', 'carry'
UNITS, SI = 'units', 'si'  # a client that sends units: si sends and gets SI; others the policy's own numbers
# Names of openpi's LIBERO and DROID clients, for a contract with one camera of that kind.
KIND_KEYS = {
    'observation/image': 'scene',
    'observation/wrist_image': 'wrist',
    'observation/exterior_image_1_left': 'scene',
    'observation/wrist_image_left': 'wrist',
}


class ObservationKeys:
    """Turns what a client sends into an observation of a contract.

    Args:
        contract: The robot's.
        keys: A client's key -> a camera's name, or `state` or `prompt`.
        words: The instruction for clients that send none.

    Raises:
        VlaError: a key that stands for nothing of the contract.
    """

    def __init__(self, contract: Contract, keys: Mapping[str, str] | None = None, words: str = '') -> None:
        self._contract, self._words = contract, words
        known = (*contract.camera_names, 'state', 'prompt')
        for key, name in (keys or {}).items():
            if name not in known:
                raise VlaError(f'--key {key}={name}: write one of {", ".join(known)} behind the =.')
        self._names = {key: name for name in contract.camera_names for key in _camera_keys(name)}
        for key, kind in KIND_KEYS.items():
            cameras = [camera.name for camera in contract.cameras if camera.kind == kind]
            if len(cameras) == 1:
                self._names.setdefault(key, cameras[0])
        self._names |= dict.fromkeys(STATES, 'state') | dict.fromkeys(WORDS, 'prompt') | dict(keys or {})

    def observation(self, sent: object) -> Observation:
        """The observation in a message.

        Raises:
            VlaError: a camera, the state or the instruction is missing, or is not what it should be.
        """
        if not isinstance(sent, Mapping):
            raise VlaError(f'an observation is a map of names and values, not {shown(sent)}.')
        flat = dict(_flat(sent))
        found = {self._names[key]: value for key, value in flat.items() if key in self._names}
        if 'state' not in found and all(key in flat for key in DROID_STATE):
            found['state'] = np.concatenate([np.atleast_1d(flat[key]) for key in DROID_STATE])
        required = [camera.name for camera in self._contract.cameras if camera.required]
        missing = [name for name in (*required, 'state') if name not in found]
        if missing:
            raise VlaError(
                f'the observation has no {", ".join(missing)}; it has {", ".join(sorted(flat)) or "nothing"}: name '
                f'them images/NAME and state, or start the server with --key KEY={missing[0]}.'
            )
        words = str(found.get('prompt', '')) or self._words
        if not words.strip():
            raise VlaError('the observation has no prompt; send one, or start the server with --prompt.')
        stamp = flat.get(STAMP, 0)
        stamp_ns = int(stamp) if isinstance(stamp, int | np.integer) else 0
        images = {name: _image(name, found[name]) for name in self._contract.camera_names if name in found}
        state = self._state(found['state'])
        if flat.get(UNITS) != SI:
            state = si_values(self._contract.state, state)
        stamps = dict.fromkeys(images, stamp_ns)
        return Observation(stamp_ns, images, stamps, state, stamp_ns, words)

    def _state(self, value: object) -> NDArray[np.float64]:
        names = self._contract.state_names
        try:
            state = np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise VlaError(f'state is {shown(value)}; numbers are needed.') from error
        if state.shape != (len(names),):
            raise VlaError(f'state has the shape {state.shape}; {self._contract.name} has {len(names)} columns: '
                           f'{", ".join(names)}.')  # fmt: skip
        return state


def _camera_keys(name: str) -> tuple[str, ...]:
    return (f'images/{name}', f'image/{name}', f'observation/{name}', f'observation/images/{name}',
            f'observation.images.{name}')  # fmt: skip


def _flat(table: Mapping[Any, Any], before: str = '') -> Iterator[tuple[str, Any]]:
    """Nested maps as one, keys joined by a slash."""
    for key, value in table.items():
        name = f'{before}{key}'
        if isinstance(value, Mapping) and name != CARRY:
            yield from _flat(value, f'{name}/')
        else:
            yield name, value


def _image(name: str, value: object) -> Image:
    """uint8 (height, width, 3), of what openpi's clients send: also colours first, and floats between 0 and 1."""
    image = np.asarray(value)
    if image.ndim == 3 and image.shape[0] == 3 and image.shape[2] != 3:
        image = image.transpose(1, 2, 0)
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise VlaError(f'image {name} has the shape {image.shape}; (height, width, 3) is needed.')
    if image.dtype.kind == 'f':
        if not np.isfinite(image).all() or image.min() < 0.0 or image.max() > 1.0:
            raise VlaError(f'image {name} holds floats beyond 0..1; send uint8, or floats between 0 and 1.')
        image = (255 * image).astype(np.uint8)
    if image.dtype != np.uint8:
        raise VlaError(f'image {name} is {image.dtype}; uint8 is needed.')
    return np.ascontiguousarray(image)
