"""What the simulator's node offers and what it turns down, apart from ROS: parameters, contracts, refusals."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import Any

from ki_robot.contract.contract import Contract
from ki_sim.errors import SimError
from ki_sim.tasks.tasks import TASKS
from ki_sim.world.robot import ARM_JOINTS, BASE_COLUMNS, CAMERAS, COLUMNS, GRIPPERS, SIDES

KINDS_OF_REFUSAL = 50  # told apart; a sender of ever new nonsense must not fill the memory
SENTENCE = 400  # characters of one that are shown

OPERATORS = ('none', 'expert', 'plan')
PARAMETERS: dict[str, tuple[Any, str]] = {
    'robot': ('bimanual_mobile', 'Robot contract whose topics are served.'),
    'task': ('demo', f'Task of the next reset: one of {", ".join(TASKS)}.'),
    'seed': (0, 'Scene of the next reset.'),
    'goal': (-1, 'Instruction of the next reset, apart from the scene; -1: from the seed.'),
    'split': ('train', 'Things of the next reset: train or heldout.'),
    'camera_rate': (20.0, 'Pictures a second of every camera.'),
    'width': (96, 'Of the pictures.'),
    'height': (96, 'Of the pictures.'),
    'quality': (92, 'Of the JPEGs, 1 to 100.'),
    'clock': (False, 'Publish /clock; stamps are then simulated time.'),
    'speed': (1.0, 'Real-time factor aimed at; 0: as fast as it goes, with clock only.'),
    'lock_step': (False, 'Let time wait for commands, with clock only.'),
    'operator': ('none', 'Who drives after ~/operate: none, expert (command topics), or plan (as a policy node).'),
}
EPISODE = ('task', 'seed', 'goal', 'split')


def typed(name: str, value: Any) -> Any:
    """The value of a parameter as its default's type; of one that is not ours, as it is.

    Raises:
        SimError: it is of another type.
    """
    if name not in PARAMETERS:
        return value
    kind = type(PARAMETERS[name][0])
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        words = {bool: 'true or false', int: 'a whole number', float: 'a number', str: 'a word'}
        raise SimError(f'{name} is {value!r}: write {words[kind]}')
    return value


def check(name: str, value: Any) -> None:
    """Whether a parameter may have a value.

    Raises:
        SimError: no, and what would do.
    """
    value = typed(name, value)
    if name == 'task' and value not in TASKS:
        raise SimError(f"task '{value}' is not known: use one of {', '.join(TASKS)}")
    if name == 'split' and value not in ('train', 'heldout'):
        raise SimError(f"split '{value}' is not known: use train or heldout")
    if name == 'seed' and value < 0:
        raise SimError(f'seed is {value}: seeds count from 0')
    if name == 'quality' and not 1 <= value <= 100:
        raise SimError(f'quality is {value}: give 1 to 100')
    if name == 'operator' and value not in OPERATORS:
        raise SimError(f"operator '{value}' is not known: use one of {', '.join(OPERATORS)}")


class Refusals:
    """Counts refused commands by source and kind: the sentence without its numbers."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, source: str, sentence: str) -> bool:
        """One more; whether it is the first of its kind."""
        kind = (source, re.sub(r'-?\d+(\.\d+)?(e[+-]?\d+)?|\bnan\b|\binf\b', '#', sentence)[:SENTENCE])
        with self._lock:
            if kind not in self._counts and len(self._counts) >= KINDS_OF_REFUSAL:
                kind = (source, 'of other kinds')
            self._counts[kind] += 1
            return self._counts[kind] == 1

    def counts(self) -> list[tuple[tuple[str, str], int]]:
        """How many of each kind."""
        with self._lock:
            return list(self._counts.items())


def servable(contract: Contract) -> Contract:
    """The contract itself, if the simulated robot has all that it names.

    Raises:
        SimError: a camera, column, stream or output that is not there.
    """
    known: dict[str, list[tuple[str, ...]]] = {
        'joint_trajectory': [tuple(f'{joint}/position' for joint in ARM_JOINTS[side]) for side in SIDES],
        'forward_command': [(f'{GRIPPERS[side]}/position',) for side in SIDES],
        'twist_stamped': [BASE_COLUMNS],
    }
    where = f'robot {contract.name} cannot be simulated'
    for camera in contract.cameras:
        if camera.name not in CAMERAS:
            raise SimError(f"{where}: there is no camera '{camera.name}', only {', '.join(CAMERAS)}")
    for column in (*contract.state_names, *contract.action_names):
        if column not in COLUMNS:
            raise SimError(f"{where}: there is no '{column}', only {', '.join(COLUMNS)}")
    for output in contract.outputs:
        if tuple(output.columns) not in known.get(output.kind, []):
            raise SimError(f"{where}: output '{output.name}' ({output.kind}) has no controller for {output.columns}")
    kinds = [stream.type for stream in contract.state_streams]
    if sorted(kinds) != ['joint_state', 'odometry']:
        raise SimError(f'{where}: its state streams are {kinds}, and there are one joint_state and one odometry')
    return contract
