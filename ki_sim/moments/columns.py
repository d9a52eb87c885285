"""Hands as the columns of a contract: poses where it has hands, joints through inverse kinematics where it has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from ki_sim.errors import SimError
from ki_sim.expert.laws import FINGER_REACH, Hand, HandCommand
from ki_sim.world.kinematics import Arms, pointing_down
from ki_sim.world.robot import ARM_JOINTS, BASE_COLUMNS, GRIPPERS, SIDES
from ki_sim.world.scene import TABLE_TOP

Floats = npt.NDArray[np.float64]
HandCommands = dict[str, list[HandCommand]]
AXES = ('x', 'y', 'z', 'yaw')
ITERATIONS = 6  # of inverse kinematics from one step to the next


def hand_columns(side: str) -> tuple[str, ...]:
    """Names of a hand's pose in a contract: x, y, z, yaw."""
    return tuple(f'{side}_hand/{axis}/position' for axis in AXES)


class MomentColumns:
    """Fills state and action columns by their names.

    Args:
        state_names: of the contract.
        action_names: of the contract.

    Raises:
        SimError: a column that the simulated robot has not.
    """

    def __init__(self, state_names: Sequence[str], action_names: Sequence[str]) -> None:
        self.state_names, self.action_names = tuple(state_names), tuple(action_names)
        known = {name for side in SIDES for name in (*hand_columns(side), *_joints(side), _gripper(side))}
        efforts = {_effort(side) for side in SIDES}  # moments step no physics: of the arms they know none
        for name in (*self.state_names, *self.action_names):
            if name not in known | set(BASE_COLUMNS) and not (name in efforts and name in self.state_names):
                raise SimError(
                    f'column {name} is not one of the simulated robot: use bimanual_hands or bimanual_mobile'
                )
        self._joint_actions = any(name in self.action_names for side in SIDES for name in _joints(side))

    def state(self, hands: Mapping[str, Hand], angles: Mapping[str, Floats], efforts: Mapping[str, float]) -> Floats:
        """What is measured, (S,), of hands, joints (rad) and the servos of the grippers (N)."""
        values = dict.fromkeys(BASE_COLUMNS, 0.0)
        for side, hand in hands.items():
            values |= dict(zip(hand_columns(side), (*hand.position, hand.yaw), strict=True))
            values |= dict(zip(_joints(side), angles[side].tolist(), strict=True))
            values |= {_gripper(side): hand.opening, _effort(side): efforts[side]}
        return np.array([values[name] for name in self.state_names])

    def actions(self, commands: HandCommands, angles: Mapping[str, Floats], arms: Arms) -> Floats:
        """Commands of both hands, absolute, (H, N); joints from those that are measured on."""
        horizon = len(next(iter(commands.values())))
        values = {name: np.zeros(horizon) for name in BASE_COLUMNS}
        for side, rows in commands.items():
            poses = np.array([(*row.position, row.yaw, row.opening) for row in rows])
            values |= dict(zip((*hand_columns(side), _gripper(side)), poses.T, strict=True))
            if self._joint_actions:
                values |= dict(zip(_joints(side), solved(arms, side, rows, angles[side]).T, strict=True))
        return np.stack([values[name] for name in self.action_names], axis=1)


def solved(arms: Arms, side: str, rows: Sequence[HandCommand], angles: Floats) -> Floats:
    """Joint angles (H, 6) that follow hand commands, each from the ones before; never below the table."""
    found = np.empty((len(rows), 6))
    for i, row in enumerate(rows):
        x, y, z = row.position
        above = (x, y, max(z, TABLE_TOP + FINGER_REACH))
        angles, _ = arms.solve(side, above, pointing_down(row.yaw), angles, iterations=ITERATIONS)
        found[i] = angles
    return found


def _joints(side: str) -> tuple[str, ...]:
    return tuple(f'{name}/position' for name in ARM_JOINTS[side])


def _gripper(side: str) -> str:
    return f'{GRIPPERS[side]}/position'


def _effort(side: str) -> str:
    return f'{GRIPPERS[side]}/effort'
