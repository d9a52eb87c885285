"""Closed loop in one process: a policy drives the simulated robot over many seeds, and its successes are counted."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ki_common.files import write_text
from ki_common.parallel import results_of
from ki_sim.errors import SimError
from ki_sim.tasks import tasks
from ki_sim.world.robot import ARM_JOINTS, COLUMNS, LIMITS, SIDES
from ki_sim.world.world import STEP_NS, SimObservation, World, clipped

Floats = npt.NDArray[np.float64]
SETTLED_STEPS = 5  # success must hold for a quarter of a second
ARM_LIMITS = {name: LIMITS[name].velocity for side in SIDES for name in ARM_JOINTS[side]}
BASE = slice(14, 17)  # of a row: the twist of the base
VIDEO_EVERY = 4  # steps between the frames of a video
VIVID = 80  # between the largest and the smallest of a pixel's red, green and blue


class SimPolicy(Protocol):
    """What drives the robot: asked for a row of commands in robot.COLUMNS order at every control step."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """That it looks through; the others are not rendered."""
        ...

    def reset(self) -> None:
        """An episode begins, at time 0."""
        ...

    def next_row(self, time_ns: int, observe: Callable[[], SimObservation]) -> npt.ArrayLike | None:
        """The commands (17,), absolute SI, of the step that begins now; None to stand still.

        Args:
            time_ns: Since the episode began.
            observe: What the robot senses now, rendered when it is called.

        Raises:
            SimError: there can be no row any more; the episode has failed, and this is why.
        """
        ...


@dataclass(frozen=True)
class EvaluationSettings:
    """How episodes are played."""

    image_size: int = 96  # rows and columns of every camera
    split: str = 'train'  # whose goals are asked for: train or heldout
    limit_s: float | None = None  # time of an episode; None: the task's


@dataclass
class SceneOutcome:
    """What came of one episode.

    `first_touched` is a label, '' when nothing was touched; `followed`: see `ki_sim.tasks.tasks.followed`. `seam` is
    the largest change of an arm joint's commanded speed from one step to the next, as a share of its speed limit.
    `think_s` is the time that the policy took, cameras not counted.
    """

    task: str
    seed: int
    goal_seed: int
    instruction: str
    success: bool = False
    score: float = 0.0
    time_s: float = 0.0
    first_touched: str = ''
    followed: bool = False
    calls: int = 0
    clipped: int = 0
    seam: float = 0.0
    think_s: float = 0.0
    error: str = ''
    video: str = ''


@dataclass
class EvaluationReport:
    """Outcomes of one task and their rates, each with a 95 % Wilson interval."""

    task: str
    settings: dict[str, Any]
    outcomes: list[SceneOutcome] = field(default_factory=list)

    @property
    def known(self) -> set[tuple[int, int]]:
        """Seed and goal seed of every episode that has been played."""
        return {(outcome.seed, outcome.goal_seed) for outcome in self.outcomes}

    def summary(self) -> dict[str, Any]:
        """Rates: success, language following (of the episodes in which anything was touched), mean score and time.

        `pairs_followed`, of scenes played with several instructions: all were followed. Who hears no words and takes
        the same object each time follows half of the episodes, and no pair.
        """
        done = [outcome for outcome in self.outcomes if outcome.success]
        touched = [outcome for outcome in self.outcomes if outcome.first_touched]
        followed = sum(outcome.followed for outcome in touched)
        scenes: dict[int, list[bool]] = {}
        for outcome in self.outcomes:
            scenes.setdefault(outcome.seed, []).append(outcome.followed)
        pairs = [all(scene) for scene in scenes.values() if len(scene) > 1]
        return {
            'task': self.task,
            'episodes': len(self.outcomes),
            'success': rate(len(done), len(self.outcomes)),
            'followed': rate(followed, len(touched)),
            'pairs_followed': rate(sum(pairs), len(pairs)),
            'touched_something': rate(len(touched), len(self.outcomes)),
            'errors': sum(bool(outcome.error) for outcome in self.outcomes),
            'score': float(np.mean([o.score for o in self.outcomes])) if self.outcomes else None,
            'time_s': float(np.mean([o.time_s for o in done])) if done else None,
            'seam': float(np.mean([o.seam for o in self.outcomes])) if self.outcomes else None,
            'think_s': float(np.mean([o.think_s for o in self.outcomes])) if self.outcomes else None,
        }

    def refuse_broken(self) -> None:
        """No rate comes of episodes that all ended with an error: it would pass for a policy that does nothing right.

        Raises:
            SimError: that is so; it names the first.
        """
        errors = [outcome.error for outcome in self.outcomes if outcome.error]
        if errors and len(errors) == len(self.outcomes):
            raise SimError(
                f'{self.task}: each of its {len(errors)} episodes ended with an error. The first: {errors[0]}'
            )

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        outcomes = [asdict(outcome) for outcome in self.outcomes]
        return {'summary': self.summary(), 'settings': self.settings, 'outcomes': outcomes}

    def save(self, path: str | Path) -> None:
        """Write it as JSON."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + '\n')


def load_report(path: Path, task: str, settings: dict[str, Any]) -> EvaluationReport:
    """The report in a file, to go on with; an empty one where there is none, or none with these settings."""
    try:
        found = json.loads(path.read_text(encoding='utf-8'))
        if found['settings'] == json.loads(json.dumps(settings)):
            return EvaluationReport(task, settings, [SceneOutcome(**row) for row in found['outcomes']])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or of another version: it is played again
    return EvaluationReport(task, settings)


def wilson(successes: int, trials: int, z: float = 1.959964) -> tuple[float, float]:
    """The 95 % score interval of a rate (Wilson 1927); (0, 1) when nothing was tried."""
    if trials <= 0:
        return 0.0, 1.0
    p, zz = successes / trials, z * z / trials
    middle = (p + zz / 2) / (1 + zz)
    half = z * math.sqrt(p * (1 - p) / trials + zz / (4 * trials)) / (1 + zz)
    return max(0.0, middle - half), min(1.0, middle + half)


def rate(successes: int, trials: int) -> dict[str, float | int | None]:
    """A count as a rate with its interval."""
    low, high = wilson(successes, trials)
    return {'k': successes, 'n': trials, 'rate': successes / trials if trials else None, 'low': low, 'high': high}


def evaluate(
    policy: SimPolicy,
    task: str,
    seeds: Iterable[int],
    settings: EvaluationSettings | None = None,
    videos: str | Path | None = None,
    progress: Callable[[SceneOutcome], None] | None = None,
    paired: bool = False,
    report: EvaluationReport | None = None,
) -> EvaluationReport:
    """Run a policy on the episodes of a task.

    Args:
        policy: Drives the robot.
        task: A name of tasks.TASKS.
        seeds: Scenes; one episode each, or two with `paired`.
        settings: How episodes are played.
        videos: A folder for a GIF of every failure.
        progress: Called after each episode.
        paired: Play every scene with two different instructions, so that only words tell what to do.
        report: One to go on with: the episodes in it are not played again.
    """
    settings = settings or EvaluationSettings()
    report = report or EvaluationReport(task, asdict(settings))
    known = report.known
    for seed in seeds:
        for goal in goal_pair(task, seed, settings.split) if paired else (None,):
            if (seed, seed if goal is None else goal) in known:
                continue
            outcome = run_episode(policy, task, seed, goal, settings, videos)
            report.outcomes.append(outcome)
            if progress is not None:
                progress(outcome)
    return report


def goal_pair(task: str, seed: int, split: str = 'train') -> tuple[int, ...]:
    """Two goal seeds that ask for different objects, or hands, in the same scene; one where it allows no other."""
    first = tasks.episode(task, seed, 0, split)
    for other in range(1, 40):
        second = tasks.episode(task, seed, other, split)
        if second.goal.objects != first.goal.objects:
            return 0, other
    for other in range(1, 40):  # all objects are asked for, or only one can be: then another place or hand
        if tasks.episode(task, seed, other, split).goal != first.goal:
            return 0, other
    return (0,)


def run_episode(
    policy: SimPolicy,
    task: str,
    seed: int,
    goal: int | None = None,
    settings: EvaluationSettings | None = None,
    videos: str | Path | None = None,
) -> SceneOutcome:
    """One episode in closed loop, until success has held for a moment or time is up."""
    settings = settings or EvaluationSettings()
    policy.reset()
    frames: list[npt.NDArray[np.uint8]] = []
    rows: list[Floats] = []
    with World(task, seed, goal, settings.split, settings.image_size, policy.cameras) as world:
        episode = world.episode
        outcome = SceneOutcome(task, seed, episode.goal_seed, episode.instruction)
        limit = round((settings.limit_s or episode.limit_s) * 1e9 / STEP_NS)
        held = 0
        try:
            for step in range(limit):
                if videos is not None and step % VIDEO_EVERY == 0:
                    frames.append(film(world, first_camera(policy)))
                rows.append(policy_row(policy, world, outcome))
                world.step(rows[-1])
                held = held + 1 if world.success() else 0
                if held >= SETTLED_STEPS:
                    break
        except SimError as error:
            outcome.error = str(error)
        outcome.success, outcome.score = held >= SETTLED_STEPS, world.score()
        outcome.time_s = world.time_ns * 1e-9
        first = world.touches.first
        outcome.first_touched = episode.label(first) if first >= 0 else ''
        outcome.followed = world.followed()
    outcome.seam = seam(rows)
    if videos is not None and not outcome.success and frames:
        outcome.video = str(write_gif(frames, Path(videos) / f'{task}-{seed}-{episode.goal_seed}.gif'))
    return outcome


def policy_row(policy: SimPolicy, world: World, outcome: SceneOutcome) -> Floats:
    """The row for this step, within the limits of the robot."""
    looked_s = 0.0

    def observe() -> SimObservation:
        nonlocal looked_s
        outcome.calls += 1
        begin = time.perf_counter()
        seen = world.observe()
        looked_s += time.perf_counter() - begin
        return seen

    begin = time.perf_counter()
    given = policy.next_row(world.time_ns, observe)
    outcome.think_s += time.perf_counter() - begin - looked_s
    if given is None:
        row = clipped(world.observe(images=False).state)
        row[BASE] = 0.0
        return row
    wanted = np.asarray(given, np.float64)
    if wanted.shape != (len(COLUMNS),):
        raise SimError(f'the policy gave commands of shape {wanted.shape}: expected ({len(COLUMNS)},)')
    row = clipped(wanted)
    outcome.clipped += int(np.any(np.abs(row - wanted) > 1e-9))
    return row


def seam(rows: Sequence[Floats]) -> float:
    """The largest change of a commanded arm joint's speed between two steps, as a share of its limit."""
    if len(rows) < 3:
        return 0.0
    names = [name.removesuffix('/position') for name in COLUMNS]
    columns = [i for i, name in enumerate(names) if name in ARM_LIMITS]
    most = np.array([ARM_LIMITS[names[i]] for i in columns]) * STEP_NS * 1e-9
    return float(np.abs(np.diff(np.array(rows)[:, columns], n=2, axis=0) / most).max())


def first_camera(policy: SimPolicy) -> str:
    """What a policy sees first; the head camera, if it sees nothing."""
    return (*policy.cameras, 'head')[0]


def film(world: World, camera: str = 'head', size: int = 160) -> npt.NDArray[np.uint8]:
    """A camera between both wrist cameras, with the time passed."""
    import cv2

    shape = world.image_size
    views = [cv2.resize(world.image(name, shape), (size, size)) for name in ('left_wrist', camera, 'right_wrist')]
    frame = np.ascontiguousarray(np.concatenate(views, axis=1), np.uint8)
    cv2.putText(frame, f'{world.time_ns * 1e-9:.1f} s', (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (20, 20, 20), 1)
    return frame


def write_gif(frames: Sequence[npt.NDArray[np.uint8]], path: str | Path, fps: float = 10.0, colours: int = 224) -> Path:
    """Write RGB frames as a looping GIF with one palette for all of them."""
    from PIL import Image

    if not frames:
        raise SimError(f'{path}: there are no frames to write')
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    palette = Image.fromarray(_telling(frames)).quantize(colours)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, optimize=True)
    return path


def _telling(frames: Sequence[npt.NDArray[np.uint8]], most: int = 50_000) -> npt.NDArray[np.uint8]:
    """Pixels (1, N, 3) to choose a palette from, half of them vivid: instructions name colours of small objects."""
    pixels = np.concatenate([frame.reshape(-1, 3) for frame in frames[:: max(1, len(frames) // 8)]])
    vivid = np.ptp(pixels.astype(np.int16), axis=1) > VIVID
    halves = [part for part in (pixels[vivid], pixels[~vivid]) if len(part)]
    chosen = [part[np.linspace(0, len(part) - 1, most).astype(int)] for part in halves]
    return np.concatenate(chosen)[None]


def expert_outcome(work: tuple[str, int, str]) -> SceneOutcome:
    """How the expert fares on one (task, seed, split), without cameras."""
    from ki_sim.expert.experts import expert_steps

    task, seed, split = work
    world = World(task, seed, None, split, cameras=())
    outcome = SceneOutcome(task, seed, world.episode.goal_seed, world.episode.instruction)
    try:
        for move in expert_steps(world):
            world.step(move.action)
            if world.time_ns >= world.episode.limit_s * 1e9:
                break
    except SimError as error:
        outcome.error = str(error)
    outcome.success, outcome.score, outcome.time_s = world.success(), world.score(), world.time_ns * 1e-9
    first = world.touches.first
    outcome.first_touched = world.episode.label(first) if first >= 0 else ''
    outcome.followed = world.followed()
    return outcome


def expert_table(
    names: Sequence[str],
    seeds: Sequence[int],
    split: str = 'train',
    workers: int = 0,
    progress: Callable[[SceneOutcome], None] | None = None,
) -> dict[str, EvaluationReport]:
    """The expert's reports by task over the same seeds."""
    for name in names:
        if name not in tasks.TASKS:
            raise SimError(f"task '{name}' is not known: use one of {', '.join(tasks.TASKS)}")
    reports = {name: EvaluationReport(name, {'policy': 'expert', 'split': split}) for name in names}
    work = [(name, seed, split) for name in names for seed in seeds]
    for outcome in results_of(expert_outcome, work, workers):
        reports[outcome.task].outcomes.append(outcome)
        if progress is not None:
            progress(outcome)
    for report in reports.values():
        report.outcomes.sort(key=lambda outcome: outcome.seed)
    return reports
