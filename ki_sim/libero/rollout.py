"""Episodes of LIBERO: in this process, or in a process of their own that asks for chunks over a pipe."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ki_sim.libero.environment import ACTION_COLUMNS, IMAGE_SIZE, LiberoEnvironment, LiberoSeen
from ki_sim.libero.suites import LiberoTask, initial_states

Act = Callable[[LiberoSeen], NDArray[np.floating[Any]]]  # a chunk: steps x 7, raw actions
FILM_HZ = 10.0  # of the simulator's 20: films are played at half speed


@dataclass(frozen=True)
class LiberoEpisode:
    """What came of one episode.

    Attributes:
        task, episode: which task, and which of its initial states.
        instruction: what was asked.
        success: whether LIBERO says that it is done.
        steps: how many were executed.
        calls: how many chunks were asked for.
        seconds: wall time.
        film: the file, where one was made.
    """

    task: int
    episode: int
    instruction: str
    success: bool
    steps: int
    calls: int
    seconds: float
    film: str = ''

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


@dataclass(frozen=True)
class RolloutSettings:
    """How episodes are played.

    Attributes:
        suite: LIBERO's name of it.
        max_steps: after which an episode has failed.
        execute_steps: of a chunk, before the next is asked for.
        seed: of robosuite.
        image_size: of both cameras; 0 draws nothing.
        films: folder for a film of every episode; None makes none.
    """

    suite: str
    max_steps: int
    execute_steps: int = 10
    seed: int = 7
    image_size: int = IMAGE_SIZE
    films: Path | None = None


def play(
    environment: LiberoEnvironment, task: LiberoTask, episode: int, act: Act, settings: RolloutSettings
) -> LiberoEpisode:
    """One episode, as openpi's client plays it."""
    begin = time.perf_counter()
    seen = environment.reset(initial_states(settings.suite, task.number)[episode])
    frames: list[NDArray[np.uint8]] = []
    plan: list[NDArray[np.floating[Any]]] = []
    done, steps, calls = False, 0, 0
    while steps < settings.max_steps and not done:
        if settings.films is not None and seen.scene is not None:
            frames.append(seen.scene)
        if not plan:
            moment = (task.number * 1000 + episode) * 1000 + steps
            plan = list(act(replace(seen, moment=moment))[: settings.execute_steps, :ACTION_COLUMNS])
            calls += 1
        seen, done = environment.step(plan.pop(0).tolist())
        steps += 1
    film = ''
    if settings.films is not None and frames:
        outcome = 'success' if done else 'failure'
        film = str(write_film(settings.films / f'{task.number:02d}-{episode:02d}-{outcome}.mp4', frames))
    seconds = round(time.perf_counter() - begin, 3)
    return LiberoEpisode(task.number, episode, task.language, done, steps, calls, seconds, film)


def write_film(path: Path, frames: Sequence[NDArray[np.uint8]]) -> Path:
    """Frames, RGB, as an MP4."""
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = frames[0].shape[:2]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*'mp4v'), FILM_HZ, (width, height))
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
    return path


def work(pipe: Connection, settings: RolloutSettings) -> None:
    """The life of a worker process: jobs (task, episode) come in, questions and outcomes go out.

    Every message out is a pair: ('ask', what is seen), which is answered with a chunk; ('done', outcome); or
    ('failed', why), after which the worker ends. The end of the pipe ends it, too.
    """
    environment: LiberoEnvironment | None = None
    current = -1

    def ask(seen: LiberoSeen) -> NDArray[np.floating[Any]]:
        pipe.send(('ask', replace(seen, raw=_numbers(seen.raw))))
        return np.asarray(pipe.recv())

    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            task, episode = pipe.recv()
            try:
                if task.number != current:  # a scene takes seconds to make, and serves all episodes of its task
                    if environment is not None:
                        environment.close()
                    environment, current = LiberoEnvironment(task, settings.seed, settings.image_size), task.number
                assert environment is not None
                pipe.send(('done', play(environment, task, episode, ask, settings)))
            except (EOFError, BrokenPipeError):
                raise
            except Exception as error:  # whatever robosuite raises ends this evaluation, not in silence
                pipe.send(('failed', f'{type(error).__name__}: {error}'))
                break
    if environment is not None:
        environment.close()


def _numbers(raw: dict[str, Any]) -> dict[str, Any]:
    """An observation without its pictures, which are sent once."""
    return {name: value for name, value in raw.items() if not name.endswith('_image')}
