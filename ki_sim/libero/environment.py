"""One scene of LIBERO as openpi's policies see it: two pictures turned by 180 degrees, eight numbers, words."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_sim.libero.suites import SETTLING_STEPS, LiberoTask
from ki_sim.world import gl

IMAGE_SIZE = 256  # what openpi's training data were rendered at
STILL = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)  # no motion, open gripper
STATE_COLUMNS, ACTION_COLUMNS = 8, 7


@dataclass(frozen=True, eq=False)
class LiberoSeen:
    """What a policy is shown.

    Attributes:
        scene, wrist: uint8 (size, size, 3), RGB; None where nothing is drawn.
        state: position of the hand [m], its rotation as axis times angle [rad], and both fingers [m].
        instruction: what to do.
        raw: robosuite's observation, for policies that are told where things are.
        moment: of task, episode and step; another moment has another number.
    """

    scene: NDArray[np.uint8] | None
    wrist: NDArray[np.uint8] | None
    state: NDArray[np.float64]
    instruction: str
    raw: dict[str, Any] = field(default_factory=dict)
    moment: int = 0


class LiberoEnvironment:
    """The scene of one task.

    Args:
        task: Which one.
        seed: Of robosuite; it places things even where the initial state is given.
        image_size: Rows and columns of both cameras; 0 draws nothing.
    """

    def __init__(self, task: LiberoTask, seed: int = 7, image_size: int = IMAGE_SIZE) -> None:
        os.environ.setdefault('MUJOCO_GL', gl.candidates()[0])
        from libero.libero.envs.env_wrapper import ControlEnv

        draws = image_size > 0
        self._task, self._draws = task, draws
        self._env = ControlEnv(
            bddl_file_name=str(task.bddl_file), has_renderer=False, has_offscreen_renderer=draws, use_camera_obs=draws,
            camera_heights=image_size or IMAGE_SIZE, camera_widths=image_size or IMAGE_SIZE,
        )  # fmt: skip
        self._env.seed(seed)

    def reset(self, initial_state: Any) -> LiberoSeen:
        """Begins an episode, and waits until everything has come to rest."""
        self._env.reset()
        raw = self._env.set_init_state(initial_state)
        for _ in range(SETTLING_STEPS):
            raw = self._env.step(list(STILL))[0]
        return self._seen(raw)

    def step(self, action: Sequence[float]) -> tuple[LiberoSeen, bool]:
        """One action (7): change of the hand's pose, -1 to 1 a column, and the gripper, -1 open to 1 closed.

        Returns:
            What is seen then, and whether the task is done.
        """
        raw, _, done, _ = self._env.step([float(value) for value in action])
        return self._seen(raw), bool(done)

    def close(self) -> None:
        """Frees the scene."""
        self._env.close()

    def _seen(self, raw: dict[str, Any]) -> LiberoSeen:
        rotation = axis_angle(raw['robot0_eef_quat'])
        state = np.concatenate([raw['robot0_eef_pos'], rotation, raw['robot0_gripper_qpos']]).astype(np.float64)
        scene, wrist = (
            np.ascontiguousarray(raw[name][::-1, ::-1]) if self._draws else None
            for name in ('agentview_image', 'robot0_eye_in_hand_image')
        )
        return LiberoSeen(scene, wrist, state, self._task.language, raw)


def axis_angle(quaternion: Any) -> NDArray[np.float64]:
    """A rotation (x, y, z, w) as its axis times its angle, 0 to 2 pi, as robosuite says it."""
    q = np.asarray(quaternion, dtype=np.float64)
    w = float(np.clip(q[3], -1.0, 1.0))
    length = np.sqrt(1.0 - w * w)
    return np.zeros(3) if np.isclose(length, 0.0) else np.asarray(q[:3] * 2.0 * np.arccos(w) / length)
