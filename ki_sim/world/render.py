"""Images and segmentation of a model, rendered offscreen by one OpenGL context that all scenes share."""

from __future__ import annotations

import mujoco
import numpy as np
import numpy.typing as npt

from ki_sim.errors import SimError
from ki_sim.world import gl

MAX_SIZE = 2048


def check_size(height: int, width: int) -> None:
    """Raise SimError for a picture that is too small or too large to be drawn."""
    if not (8 <= height <= MAX_SIZE and 8 <= width <= MAX_SIZE):
        raise SimError(f'image size {height}x{width} cannot be drawn: use 8 to {MAX_SIZE} rows and columns')


class Cameras:
    """Draws the cameras of one model; free it (or leave the `with`) before many more are made.

    Images are uint8 (height, width, 3) RGB, top row first. Without multisampling, shadows and reflections, which cost
    most; `shadows=True` turns the last two on.
    """

    def __init__(self, model: mujoco.MjModel, height: int, width: int, shadows: bool = False) -> None:
        check_size(height, width)
        # A buffer no larger than the picture: making one of 1280x960 takes ten times as long as drawing into it.
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        gl.make_current()
        self.model, self.height, self.width = model, height, width
        self._scene = mujoco.MjvScene(model, maxgeom=600)
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._context: mujoco.MjrContext | None = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        self._rect = mujoco.MjrRect(0, 0, width, height)
        self._pixels = np.empty((height, width, 3), np.uint8)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = shadows

    def __enter__(self) -> Cameras:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the model's textures and buffers back to the GL driver, and the context to whoever draws next."""
        if self._context is not None:
            gl.make_current()
            self._context.free()
            self._context = None
            gl.release()

    def image(self, data: mujoco.MjData, camera: str) -> npt.NDArray[np.uint8]:
        """A colour picture from a named camera of the model, at the state of `data`."""
        self._look(data, camera)
        return self._read()

    def view(
        self, data: mujoco.MjData, lookat: tuple[float, float, float], distance: float, azimuth: float, elevation: float
    ) -> npt.NDArray[np.uint8]:
        """A picture from a free camera: what a bystander sees. Angles in degrees."""
        camera = mujoco.MjvCamera()
        camera.lookat[:] = lookat
        camera.distance, camera.azimuth, camera.elevation = distance, azimuth, elevation
        self._update(data, camera)
        return self._read()

    def segments(self, data: mujoco.MjData, camera: str) -> npt.NDArray[np.int32]:
        """Which body each pixel shows, int32 (height, width), -1 where there is none."""
        self._look(data, camera)
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        rgb = self._read().astype(np.int32)
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
        index = rgb[..., 0] + (rgb[..., 1] << 8) + (rgb[..., 2] << 16)
        bodies = np.full(self._scene.ngeom + 1, -1, np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM and geom.segid >= 0:
                bodies[geom.segid + 1] = self.model.geom_bodyid[geom.objid]
        shown: npt.NDArray[np.int32] = bodies[np.minimum(index, self._scene.ngeom)]
        return shown

    def _look(self, data: mujoco.MjData, camera: str) -> None:
        index = mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, camera)
        if index < 0:
            names = [self.model.camera(i).name for i in range(self.model.ncam)]
            raise SimError(f"there is no camera '{camera}': use one of {', '.join(names)}")
        self._camera.fixedcamid = index
        self._update(data, self._camera)

    def _update(self, data: mujoco.MjData, camera: mujoco.MjvCamera) -> None:
        if self._context is None:
            raise SimError('these cameras are closed: make new ones for the scene')
        gl.make_current()
        mujoco.mjv_updateScene(self.model, data, self._option, None, camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene)

    def _read(self) -> npt.NDArray[np.uint8]:
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(self._pixels, None, self._rect, self._context)
        return np.ascontiguousarray(self._pixels[::-1])
