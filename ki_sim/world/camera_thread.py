"""Renders the cameras of a running simulation in a thread of their own."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence

import mujoco
import numpy as np
import numpy.typing as npt

from ki_sim.world.render import Cameras
from ki_sim.world.world import World

Images = dict[str, npt.NDArray[np.uint8]]
# All that a picture is drawn from. Taken over as it stands, so that a picture is the one the world itself would draw.
DRAWN = ('geom_xpos', 'geom_xmat', 'cam_xpos', 'cam_xmat', 'light_xpos', 'light_xdir', 'xpos', 'xmat', 'xipos', 'ximat')
NICE = 5  # below the physics


class CameraThread:
    """Draws in a thread of its own, which the OpenGL context belongs to; holds one order at a time."""

    def __init__(self, size: tuple[int, int], names: Sequence[str], show: Callable[[int, Images], None]) -> None:
        self._size, self._names, self._show = size, tuple(names), show
        self._order: tuple[int, mujoco.MjModel] | None = None
        self._state = threading.Condition()
        self._ending = False
        self._error: Exception | None = None
        self._shown: mujoco.MjData | None = None
        self._model: mujoco.MjModel | None = None
        self._thread = threading.Thread(target=self._run, name='cameras', daemon=True)
        self._thread.start()

    def check(self, world: World) -> None:
        """Draws once without showing it: an error of OpenGL is raised here, by whoever starts."""
        self.draw(world, -1, wait=True)

    def draw(self, world: World, time_ns: int, wait: bool = False) -> bool:
        """Takes a copy of what is seen now; False when the last picture is still being drawn."""
        with self._state:
            while wait and self._order is not None and not self._ending:
                self._state.wait(0.5)
            if self._order is not None:
                return False
            if self._model is not world.model:
                self._model, self._shown = world.model, mujoco.MjData(world.model)
                mujoco.mj_forward(self._model, self._shown)
            for name in DRAWN:
                getattr(self._shown, name)[:] = getattr(world.data, name)
            self._order = (time_ns, world.model)
            self._state.notify_all()
            while wait and self._order is not None and not self._ending:
                self._state.wait(0.5)
            if self._error is not None:
                raise self._error
        return True

    def close(self) -> None:
        """Ends the thread."""
        with self._state:
            self._ending = True
            self._state.notify_all()
        self._thread.join(5.0)

    def _run(self) -> None:
        if hasattr(os, 'setpriority'):
            here = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, here, min(19, os.getpriority(os.PRIO_PROCESS, here) + NICE))
        cameras: Cameras | None = None
        while True:
            with self._state:
                while self._order is None and not self._ending:
                    self._state.wait()
                if self._ending:
                    break
                assert self._order is not None
                time_ns, model = self._order
            try:
                if cameras is None or cameras.model is not model:
                    if cameras is not None:
                        cameras.close()
                    cameras = Cameras(model, *self._size)
                images = {name: cameras.image(self._shown, name) for name in self._names}
                if time_ns >= 0:
                    self._show(time_ns, images)
            except Exception as error:
                self._error = error
            with self._state:
                self._order = None
                self._state.notify_all()
                if self._error is not None:
                    break
        if cameras is not None:
            cameras.close()
