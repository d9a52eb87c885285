"""Episodes of the expert as data: frames in memory, and files that a machine without ROS reads with numpy alone.

Row k holds what the robot saw and measured at t_k and the command issued then, which the controllers carry out until
t_k + 50 ms. The same task, seed and goal give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ki_common.files import atomic_file
from ki_sim.errors import SimError
from ki_sim.expert.experts import expert_steps
from ki_sim.tasks.episode import TaskEpisode
from ki_sim.vqa.boxes import Pointer
from ki_sim.world.kinematics import Arms
from ki_sim.world.robot import CAMERAS, COLUMNS, POSITION_JOINTS
from ki_sim.world.world import STEP_NS, World

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Tick:
    """What the fast sensors say every 10 ms: joint positions, velocities and efforts, the base's pose and twist."""

    time_ns: int
    position: Floats
    velocity: Floats
    effort: Floats
    pose: Floats
    twist: Floats


@dataclass(frozen=True)
class RecordedFrame:
    """One step of 50 ms: JPEG by camera, state and action in the contract's columns, and what is being done.

    `ticks` are the fast sensors since the frame before, the last one at this frame's own time. `driver`: a number of
    ki_msgs/ControlSource where it is recorded who drives.
    """

    time_ns: int
    images: dict[str, bytes]
    state: Floats
    action: Floats
    subtask: str
    ticks: tuple[Tick, ...]
    driver: int | None = None


@dataclass
class Recording:
    """One episode and how it ended; `driver` is who drove it."""

    episode: TaskEpisode
    frames: list[RecordedFrame] = field(default_factory=list)
    success: bool = False
    score: float = 0.0
    first_touched: int = -1
    driver: str = 'scripted expert'

    def meta(self) -> dict[str, Any]:
        """What is true of the whole episode, as plain data."""
        episode = self.episode
        return {
            'task': episode.task,
            'seed': episode.seed,
            'goal_seed': episode.goal_seed,
            'split': episode.split,
            'instruction': episode.instruction,
            'objects': [obj.label for obj in episode.scene.objects],
            'asked_for': [episode.label(i) for i in episode.goal.objects],
            'success': self.success,
            'score': self.score,
            'steps': len(self.frames),
        }


def play(
    world: World, quality: int | None = 92, arms: Arms | None = None, boxes: bool = False
) -> Iterator[RecordedFrame]:
    """Let the expert play a world's episode and yield its frames; `quality` None leaves the cameras out.

    With `boxes`, subtasks say where the object is that is reached for; see `boxes.Pointer`. Ends with the expert's plan
    or at the task's time limit.
    """
    ticks = [tick_of(world)]
    point = Pointer(world) if boxes else str
    for move in expert_steps(world, arms):
        observation = world.observe(images=quality is not None)
        images = {name: jpeg(image, quality or 0) for name, image in observation.images.items()}
        yield RecordedFrame(world.time_ns, images, observation.state, move.action, point(move.subtask), tuple(ticks))
        ticks = []
        world.step(move.action, lambda: ticks.append(tick_of(world)))  # noqa: B023 - called within this very step
        if world.time_ns >= world.episode.limit_s * 1e9:
            break


def record_episode(
    task: str,
    seed: int,
    goal: int | None = None,
    split: str = 'train',
    image_size: int | tuple[int, int] = 96,
    quality: int | None = 92,
    arms: Arms | None = None,
    boxes: bool = False,
) -> Recording:
    """Play one episode with the expert and keep all of it in memory."""
    with World(task, seed, goal, split, image_size, CAMERAS if quality is not None else ()) as world:
        recording = Recording(world.episode, list(play(world, quality, arms, boxes)))
        recording.success, recording.score = world.success(), world.score()
        recording.first_touched = world.touches.first
    return recording


def jpeg(image: npt.NDArray[np.uint8], quality: int) -> bytes:
    """An RGB image as JPEG."""
    done, data = cv2.imencode('.jpg', image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise SimError(f'an image of shape {image.shape} cannot be written as JPEG: give height x width x 3 bytes')
    return bytes(data)


def arrays(recording: Recording) -> dict[str, Any]:
    """A recording as NumPy arrays: what `save` writes.

    `state`, `action`: float32 (T, 17) in robot.COLUMNS order; `time_ns`: int64 (T,); `subtask`: int64 (T,), rows of
    `subtasks`; `jpeg`: all images' bytes, one after another by step and camera, cut at `offset` (T, V + 1);
    `cameras`, `columns`, `subtasks`: names; `meta`: JSON of Recording.meta.
    """
    if not recording.frames:
        raise SimError(f'{recording.episode.task} with seed {recording.episode.seed} has no frames: nothing to save')
    names = list(dict.fromkeys(frame.subtask for frame in recording.frames))
    cameras = list(recording.frames[0].images)
    sizes = np.array([[len(frame.images[name]) for name in cameras] for frame in recording.frames], np.int64)
    ends = np.cumsum(sizes).reshape(sizes.shape)
    starts = np.concatenate([[0], ends[:-1, -1]]) if cameras else np.zeros(len(sizes), np.int64)
    blob = b''.join(frame.images[name] for frame in recording.frames for name in cameras)
    return {
        'time_ns': np.array([frame.time_ns for frame in recording.frames], np.int64),
        'state': np.array([frame.state for frame in recording.frames], np.float32),
        'action': np.array([frame.action for frame in recording.frames], np.float32),
        'subtask': np.array([names.index(frame.subtask) for frame in recording.frames], np.int64),
        'subtasks': np.array(names),
        'jpeg': np.frombuffer(blob, np.uint8),
        'offset': np.concatenate([starts[:, None], ends], axis=1),
        'cameras': np.array(cameras),
        'columns': np.array(COLUMNS),
        'meta': np.array(json.dumps(recording.meta(), sort_keys=True)),
    }


def save(recording: Recording, path: str | Path) -> Path:
    """Write a recording as one .npz, whole or not at all."""
    path = Path(path)
    with atomic_file(path) as file:
        np.savez(file, **arrays(recording))
    return path


def load(path: str | Path) -> dict[str, Any]:
    """Read what `save` wrote; `meta` becomes a dict, and `images` a function (step, camera) -> uint8 RGB."""
    try:
        with np.load(path) as file:
            found: dict[str, Any] = {name: file[name] for name in file.files}
        found['meta'] = json.loads(str(found['meta']))
        blob, offset, cameras = found['jpeg'], found['offset'], [str(name) for name in found['cameras']]
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise SimError(f'{path} is not a recording of the simulator ({error}): record it again') from error

    def image(step: int, camera: str) -> npt.NDArray[np.uint8]:
        view = cameras.index(camera)
        data = blob[offset[step, view] : offset[step, view + 1]]
        picture = cv2.imdecode(data, cv2.IMREAD_COLOR)
        if picture is None:
            raise SimError(f'{path}: the picture of {camera} at step {step} does not decode: record it again')
        return np.ascontiguousarray(picture[..., ::-1], np.uint8)

    found['images'] = image
    return found


def tick_of(world: World, stamp_ns: int | None = None) -> Tick:
    """What the fast sensors say now, under a stamp; the world's own time unless given."""
    states = world.joint_states()
    pose, twist = world.odometry()
    position, velocity, effort = np.array([states[name] for name in POSITION_JOINTS]).T
    return Tick(world.time_ns if stamp_ns is None else stamp_ns, position, velocity, effort, pose, twist)


__all__ = [
    'STEP_NS',
    'RecordedFrame',
    'Recording',
    'Tick',
    'arrays',
    'jpeg',
    'load',
    'play',
    'record_episode',
    'save',
    'tick_of',
]
