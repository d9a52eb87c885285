"""Where the hands are, and which joint angles put them there: damped least squares over MuJoCo's Jacobians.

Own thirty lines rather than a QP library: the arms have as many joints as a hand pose has numbers, limits are met by
clipping, and a dependency with a solver would be larger than the room it serves.
"""

from __future__ import annotations

from functools import cached_property

import mujoco
import numpy as np
import numpy.typing as npt

from ki_sim.errors import SimError
from ki_sim.world.robot import ARM_JOINTS, LIMITS, SIDES, robot_body, robot_rest

Floats = npt.NDArray[np.float64]


class Arms:
    """Kinematics of both arms in the base frame. Holds MuJoCo data of its own: one per thread."""

    def __init__(self) -> None:
        self.model = mujoco.MjModel.from_xml_string(
            f'<mujoco><compiler angle="radian"/><worldbody>{robot_body()}</worldbody>{robot_rest()}</mujoco>'
        )
        self.data = mujoco.MjData(self.model)

    @cached_property
    def _address(self) -> dict[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]]:
        found = {}
        for side in SIDES:
            joints = [self.model.joint(name) for name in ARM_JOINTS[side]]
            found[side] = (
                np.array([joint.qposadr[0] for joint in joints]),
                np.array([joint.dofadr[0] for joint in joints]),
                self.model.site(f'{side}_tcp').id,
            )
        return found

    def pose(self, side: str, q: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Position (3,) and rotation (3, 3) of the point between the pads, for six joint angles."""
        positions, _, site = self._address[side]
        self.data.qpos[positions] = q
        mujoco.mj_kinematics(self.model, self.data)
        return self.data.site_xpos[site].copy(), self.data.site_xmat[site].reshape(3, 3).copy()

    def solve(
        self,
        side: str,
        position: npt.ArrayLike,
        rotation: Floats,
        start: npt.ArrayLike,
        iterations: int = 60,
        tolerance: float = 1e-4,
        damping: float = 0.02,
    ) -> tuple[Floats, float]:
        """Joint angles that bring the hand to a pose, found from `start`, and the error left (m + rad / 10).

        Inside the joint limits always; the caller judges whether the error left will do. Damping is relative to
        metres, with angles weighted by 0.1 m/rad, and falls with the error so that the last steps are Newton's.
        """
        _, dofs, site = self._address[side]
        lower = np.array([LIMITS[name].lower for name in ARM_JOINTS[side]])
        upper = np.array([LIMITS[name].upper for name in ARM_JOINTS[side]])
        q = np.asarray(start, np.float64)
        if q.shape != (6,):
            raise SimError(f'inverse kinematics starts from 6 joint angles, got {q.size}: give all of one arm')
        q = np.clip(q, lower, upper)
        target, jacobian = np.asarray(position, np.float64), np.zeros((6, self.model.nv))
        best, best_error = q, np.inf
        for _ in range(iterations):
            here, turned = self.pose(side, q)
            error = np.concatenate([target - here, 0.1 * rotation_vector(rotation @ turned.T)])
            size = float(np.linalg.norm(error))
            if size < best_error:
                best, best_error = q, size
            if size < tolerance:
                break
            mujoco.mj_comPos(self.model, self.data)
            mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], site)
            J = jacobian[:, dofs].copy()
            J[3:] *= 0.1
            error *= min(1.0, 0.15 / size)  # far targets are approached in steps the Jacobian still describes
            damped = J @ J.T + (damping * min(1.0, 10 * size)) ** 2 * np.eye(6)
            q = np.clip(q + np.clip(J.T @ np.linalg.solve(damped, error), -0.4, 0.4), lower, upper)
        return best, best_error


def rotation_vector(rotation: Floats) -> Floats:
    """Axis times angle (rad) of a rotation matrix."""
    quaternion, vector = np.empty(4), np.empty(3)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    mujoco.mju_quat2Vel(vector, quaternion, 1.0)
    return vector


def pointing_down(yaw: float) -> Floats:
    """Hand rotation with the fingers straight down, the pads closing along the direction `yaw` + 90 degrees."""
    c, s = np.cos(yaw), np.sin(yaw)
    # columns: approach (hand x), closing (hand y), back of the hand (hand z)
    return np.array([[0.0, -s, c], [0.0, c, s], [-1.0, 0.0, 0.0]])


def pointing(direction: float, pitch: float = 0.0) -> Floats:
    """Hand rotation with the fingers along a compass direction, lowered by `pitch`, closing horizontally."""
    c, s, cp, sp = np.cos(direction), np.sin(direction), np.cos(pitch), np.sin(pitch)
    approach = np.array([c * cp, s * cp, -sp])
    closing = np.array([-s, c, 0.0])
    return np.column_stack([approach, closing, np.cross(approach, closing)])
