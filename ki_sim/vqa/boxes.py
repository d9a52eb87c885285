"""Where an object is in a picture: its box, measured on the true segmentation and written as PaliGemma writes boxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ki_sim.world.render import Cameras

if TYPE_CHECKING:
    from ki_sim.world.world import World

SHARP = 384  # pixels at which boxes are measured, whatever the size of the picture
LEAST_PIXELS = 90  # of those, for an object to be talked about
CELLS = 6  # rows and columns of the coarse map of a picture
LEAST_SHARE = 0.05  # of a cell, for an object to fill it
LOCATIONS = 1024
POINTED = ('reach for the ', 'grasp the ')

PictureBox = tuple[float, float, float, float]


def box_of(segments: npt.NDArray[np.int32], body: int) -> PictureBox | None:
    """Top, left, bottom and right of a body, as shares of the picture; None when hardly any of it is seen.

    Args:
        segments: From `Cameras.segments`, SHARP x SHARP.
        body: Its number in the model.
    """
    shown = segments == body
    if shown.sum() < LEAST_PIXELS:
        return None
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    top, left, bottom, right = (float(edge) / SHARP for edge in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1))
    return top, left, bottom, right


def cells_of(segments: npt.NDArray[np.int32], bodies: Sequence[int]) -> npt.NDArray[np.int64]:
    """Which of some bodies fills most of each cell of a coarse grid: its place in `bodies`, -1 where none is.

    Args:
        segments: From `Cameras.segments`, SHARP x SHARP.
        bodies: Their numbers in the model.

    Returns:
        int64 (CELLS, CELLS), top row first.
    """
    side = SHARP // CELLS
    shown = (segments[..., None] == np.asarray(bodies)).reshape(CELLS, side, CELLS, side, len(bodies)).mean((1, 3))
    return np.where(shown.max(-1) < LEAST_SHARE, -1, shown.argmax(-1))


def box_text(box: PictureBox) -> str:
    """A box as PaliGemma writes it: top, left, bottom, right, each of 1024 steps."""
    return ''.join(f'<loc{min(LOCATIONS - 1, int(edge * LOCATIONS)):04d}>' for edge in box)


class Pointer:
    """Adds to what the robot says it will do next where in a camera's picture the object is.

    `reach for the red cup` becomes `reach for the red cup <loc0407><loc0388><loc0473><loc0464>`. The box is measured
    when the robot begins to reach, and stays while it grasps. A hand that is in the way does not count: who takes over
    reaches from anywhere, and half a box would teach a place beside the object.
    """

    def __init__(self, world: World, camera: str = 'head') -> None:
        self._world, self._camera = world, camera
        self._objects = {obj.label: f'object{i}' for i, obj in enumerate(world.episode.scene.objects)}
        self._last, self._boxes = '', dict.fromkeys(self._objects, '')

    def __call__(self, subtask: str) -> str:
        """The words, with a box where they point at an object that is seen."""
        verb = next((verb for verb in POINTED if subtask.startswith(verb)), None)
        begins, self._last = subtask != self._last, subtask
        if verb is None or (label := subtask.removeprefix(verb)) not in self._objects:
            return subtask
        if begins and verb == POINTED[0]:
            self._boxes[label] = self._measure(self._objects[label])
        return f'{subtask} {self._boxes[label]}'.strip()

    def _measure(self, body: str) -> str:
        model = self._world.model
        with Cameras(model, SHARP, SHARP) as cameras:
            box = box_of(cameras.segments(self._world.arms_aside(), self._camera), model.body(body).id)
        return '' if box is None else box_text(box)
