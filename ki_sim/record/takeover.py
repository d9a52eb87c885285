"""A policy in the simulator, and a scripted operator who takes over when it fails: recordings to learn from.

The operator sees the true state of the scene. He waits, lets the robot stand for a moment, as an executor does between
two drivers, and then does the task as the expert would from there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from ki_sim.errors import SimError
from ki_sim.evaluate.closed_loop import BASE, SETTLED_STEPS, SceneOutcome, SimPolicy, first_camera, policy_row
from ki_sim.expert.experts import correcting_steps, expert_steps
from ki_sim.expert.motions import ExpertStep
from ki_sim.record.record import Floats, RecordedFrame, Recording, Tick, jpeg, tick_of
from ki_sim.vqa.boxes import Pointer
from ki_sim.world.kinematics import Arms
from ki_sim.world.robot import CAMERAS
from ki_sim.world.world import STEP_NS, World

HAND_OVER_STEPS = 10  # between policy and human the robot stands
RISEN = 1e-3  # of the score: less is no progress


class Driven(IntEnum):
    """Who drives; the numbers of ki_msgs/ControlSource."""

    HOLD = 0
    POLICY = 1
    HUMAN = 2


@dataclass(frozen=True)
class Patience:
    """When the operator takes over."""

    stuck_s: float = 10.0  # without progress for so long
    wrong_object: bool = True  # at once when another object than the one that is asked for is touched first


class ScriptedOperator:
    """Watches one episode, and says when the policy has failed.

    Args:
        patience: How long he waits.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._best, self._since_ns = 0.0, 0

    def complaint(self, world: World) -> str:
        """Why to take over now; empty while the policy may go on."""
        score = world.score()
        if score > self._best + RISEN:
            self._best, self._since_ns = score, world.time_ns
        first = world.touches.first
        if self._patience.wrong_object and first >= 0 and first not in world.episode.goal.objects:
            return f'touched {world.episode.label(first)}'
        stuck_s = (world.time_ns - self._since_ns) * 1e-9
        return f'no progress for {stuck_s:.1f} s' if stuck_s > self._patience.stuck_s else ''


def record_takeover(
    policy: SimPolicy,
    task: str,
    seed: int,
    patience: Patience | None = None,
    image_size: int | tuple[int, int] = 96,
    quality: int = 92,
    split: str = 'train',
    arms: Arms | None = None,
    driver: str = 'policy',
    led: bool = False,
    cameras: tuple[str, ...] = CAMERAS,
) -> Recording:
    """One episode of a policy, to its end or to the end of the operator's correction; every frame says who drove.

    With `led` the operator drives as the recordings of the expert do, for a policy that learned from these; else at the
    pace of moments. `cameras` are recorded, those of the policy among them.

    Raises:
        SimError: the policy gave commands that are none.
    """
    policy.reset()
    operator = ScriptedOperator(patience or Patience())
    with World(task, seed, None, split, image_size, cameras) as world:
        episode = world.episode
        recording = Recording(episode, driver=driver)
        outcome = SceneOutcome(task, seed, episode.goal_seed, episode.instruction)
        ticks: list[Tick] = [tick_of(world)]
        stands, held, moves = 0, 0, None
        pointed: Callable[[str], str] = str
        row: Floats | None = None
        limit = round(episode.limit_s * 1e9 / STEP_NS)
        for step in range(2 * limit):  # a correction may begin as late as the policy's time ends
            if step >= limit and moves is None and not stands:
                break
            seen = world.observe()
            subtask, driven = '', Driven.POLICY
            if moves is None and not stands and operator.complaint(world):
                stands = HAND_OVER_STEPS
            if stands:
                stands, driven = stands - 1, Driven.HOLD
                row = _standing(row if row is not None else seen.state)
                if not stands:
                    moves = (expert_steps if led else correcting_steps)(world, arms)
                    # As the expert's own data say it: a policy of two levels acts on it.
                    pointed = Pointer(world, first_camera(policy))
            elif moves is not None:
                move = _next(moves)
                if move is None:
                    break
                row, subtask, driven = move.action, pointed(move.subtask), Driven.HUMAN
            else:
                row = policy_row(policy, world, outcome)
            images = {name: jpeg(image, quality) for name, image in seen.images.items()}
            recording.frames.append(
                RecordedFrame(world.time_ns, images, seen.state, row, subtask, tuple(ticks), driven.value)
            )
            ticks = []
            world.step(row, lambda: ticks.append(tick_of(world)))  # noqa: B023 - called within this very step
            held = held + 1 if world.success() else 0
            if held >= SETTLED_STEPS:
                break
        recording.success, recording.score = world.success(), world.score()
        recording.first_touched = world.touches.first
    return recording


def _standing(row: Floats) -> Floats:
    """The commands of a robot that stands: where it was sent, the base at rest."""
    stands: Floats = row.copy()
    stands[BASE] = 0.0
    return stands


def _next(moves: Iterator[ExpertStep]) -> ExpertStep | None:
    try:
        return next(moves, None)
    except SimError:  # what lies there cannot be done from here: the episode ends as a failure
        return None


def human_steps(recording: Recording) -> int:
    """How many steps the operator drove."""
    return sum(frame.driver == Driven.HUMAN for frame in recording.frames)
