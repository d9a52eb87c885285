"""What the simulator's node offers and what it turns down, apart from ROS: parameters, contracts, refusals."""

from __future__ import annotations

import re
import threading
from collections import Counter
from typing import ClassVar, Literal

from ki_common.errors import KiError
from ki_common.node_settings import Change, NodeSettings, setting
from ki_robot.contract.contract import Contract
from ki_sim.errors import SimError
from ki_sim.world.robot import ALL_CAMERAS, ARM_JOINTS, BASE_COLUMNS, COLUMNS, EFFORTS, GRIPPERS, SIDES

KINDS_OF_REFUSAL = 50  # told apart; a sender of ever new nonsense must not fill the memory
SENTENCE = 400  # characters of one that are shown

TaskName = Literal['demo', 'touch', 'put_in_bin', 'next_to', 'push', 'stack', 'bus', 'bus_table', 'hand_over', 'fetch']
Split = Literal['train', 'heldout']
OperatorName = Literal['none', 'expert', 'plan']


class SimRobotSettings(NodeSettings):
    """Parameters of sim_robot."""

    raises: ClassVar[type[KiError]] = SimError

    robot: str = setting('bimanual_mobile')
    """Robot contract whose topics are served: a name of config/robots, or the path of a YAML file."""
    task: TaskName = setting('demo', change=Change.LIVE)
    """Task of the next ~/reset."""
    seed: int = setting(0, ge=0, change=Change.LIVE)
    """Scene of the next ~/reset."""
    goal: int = setting(-1, ge=-1, change=Change.LIVE)
    """Instruction of the next ~/reset, apart from the scene; -1 draws it from the seed."""
    split: Split = setting('train', change=Change.LIVE)
    """Objects of the next ~/reset; heldout takes ones that no action data shows."""
    camera_rate: float = setting(20.0, unit='Hz', ge=1.0, le=100.0)
    """Pictures a second of every camera."""
    width: int = setting(96, unit='pixels', ge=8, le=2048)
    """Width of the pictures."""
    height: int = setting(96, unit='pixels', ge=8, le=2048)
    """Height of the pictures."""
    quality: int = setting(92, ge=1, le=100)
    """Quality of the JPEGs."""
    clock: bool = setting(False)
    """Publish /clock; stamps are then simulated time, and the other nodes need use_sim_time."""
    speed: float = setting(1.0, ge=0.0, le=100.0)
    """Real-time factor; 0 is as fast as it goes. Anything but 1 needs clock."""
    lock_step: bool = setting(False)
    """Let time wait for commands; needs clock."""
    operator: OperatorName = setting('none')
    """Who drives after ~/operate: the expert by the command topics, or its plan as a policy node."""

    @property
    def episode(self) -> tuple[str, int, int | None, str]:
        """Task, seed, goal (None: from the seed) and split of the next reset."""
        return self.task, self.seed, None if self.goal < 0 else self.goal, self.split


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
        if camera.name not in ALL_CAMERAS:
            raise SimError(f"{where}: there is no camera '{camera.name}', only {', '.join(ALL_CAMERAS)}")
        if camera.transport not in ('raw', 'compressed'):
            raise SimError(f"{where}: camera '{camera.name}' is {camera.transport}; write raw or compressed")
    robot = contract.robot  # the simulator has joints; hands are the executor's affair
    for names, there in ((robot.state_names, (*COLUMNS, *EFFORTS)), (robot.action_names, COLUMNS)):
        if strange := next((name for name in names if name not in there), ''):
            raise SimError(f"{where}: there is no '{strange}', only {', '.join(there)}")
    for output in robot.outputs:
        if tuple(output.columns) not in known.get(output.kind, []):
            raise SimError(f"{where}: output '{output.name}' ({output.kind}) has no controller for {output.columns}")
    kinds = [stream.type for stream in contract.state_streams]
    if kinds.count('joint_state') != 1 or sorted(kinds) not in (['joint_state'], ['joint_state', 'odometry']):
        raise SimError(f'{where}: its state streams are {kinds}, and there are one joint_state and one odometry')
    return contract
