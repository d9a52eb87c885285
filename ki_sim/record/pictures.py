"""Pictures and films of the simulator for people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from ki_sim.errors import SimError
from ki_sim.evaluate.closed_loop import write_gif
from ki_sim.expert.experts import expert_steps
from ki_sim.world.world import World

Picture = npt.NDArray[np.uint8]


def bystander(world: World, width: int = 480, height: int = 360, azimuth: float = 155.0) -> Picture:
    """The robot and its tables from the side."""
    far = len(world.episode.scene.stations) > 1
    lookat, distance = ((-0.02, 0.42, 0.72), 2.75) if far else ((0.31, 0.0, 0.97), 1.72)
    size = world.image_size if (width, height) == (480, 360) and min(world.image_size) >= 200 else (height, width)
    return world.cameras(size).view(world.data, lookat, distance, -125.0 if far else azimuth, -28.0)


def expert_film(task: str, seed: int, path: str | Path, every: int = 4, width: int = 480, height: int = 360) -> Path:
    """A GIF of the expert at a task, from the side, with the instruction and what is being done."""
    import cv2

    frames: list[Picture] = []
    with World(task, seed, cameras=(), shadows=True) as world:
        for step, move in enumerate(expert_steps(world)):
            if step % every == 0:
                frame = bystander(world, width, height)
                bar = np.full((38, width, 3), 245, np.uint8)
                for row, (text, colour) in enumerate(
                    ((world.instruction, (20, 20, 20)), (move.subtask, (20, 90, 150)))
                ):
                    scale = min(0.42, 0.42 * (width - 12) / max(1, cv2.getTextSize(text, 0, 0.42, 1)[0][0]))
                    cv2.putText(bar, text, (6, 15 + 17 * row), 0, scale, colour, 1, cv2.LINE_AA)
                frames.append(np.concatenate([bar, frame]))
            world.step(move.action)
        if not world.success():
            raise SimError(f'the expert did not succeed at {task} with seed {seed}: choose another seed to film')
    return write_gif(frames, path, fps=20 / every)
