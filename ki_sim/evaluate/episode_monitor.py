"""The outcome of an episode that another process drives, by the same rules as the evaluation in one process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ki_sim.evaluate.closed_loop import SETTLED_STEPS, SceneOutcome
from ki_sim.world.world import World


class EpisodeMonitor:
    """Watches one episode, from the first command after its reset to its success or the end of its time."""

    def __init__(self, world: World) -> None:
        episode = world.episode
        self.outcome = SceneOutcome(episode.task, episode.seed, episode.goal_seed, episode.instruction)
        self.ended = ''  # 'success', 'time', or 'operator' when who drives says it is over
        self._begin_ns: int | None = None
        self._held = 0

    def begin(self, world: World) -> None:
        """A command was taken."""
        if self._begin_ns is None:
            self._begin_ns = world.time_ns

    def look(self, world: World) -> None:
        """Every 50 ms: has success held for a moment, is time up?"""
        if self.ended or self._begin_ns is None or world.time_ns == self._begin_ns:
            return
        self._held = self._held + 1 if world.success() else 0
        if self._held >= SETTLED_STEPS:
            self._end(world, 'success')
        elif self.late(world):
            self._end(world, 'time')

    @property
    def waits(self) -> bool:
        """Whether nothing has been commanded yet."""
        return self._begin_ns is None and not self.ended

    def late(self, world: World) -> bool:
        """Whether the time of the task is up."""
        return self._begin_ns is not None and world.time_ns - self._begin_ns >= world.episode.limit_s * 1e9

    def finish(self, world: World, error: str) -> None:
        """Who drives is done, or cannot go on: what is true now counts, unless time was up before."""
        self.outcome.error = error
        if self.ended != 'time':
            self._held = SETTLED_STEPS if world.success() else 0
            self._end(world, 'operator')

    def _end(self, world: World, why: str) -> None:
        self._fill(world, self._held >= SETTLED_STEPS)
        self.ended = why

    def _fill(self, world: World, success: bool) -> None:
        outcome, first = self.outcome, world.touches.first
        outcome.success = success
        outcome.score = world.score()
        outcome.time_s = 0.0 if self._begin_ns is None else round((world.time_ns - self._begin_ns) * 1e-9, 3)
        outcome.first_touched = world.episode.label(first) if first >= 0 else ''
        outcome.followed = world.followed()

    def report(self, world: World) -> Mapping[str, Any]:
        """The outcome as plain data: final once `ended` is not empty, as of now before."""
        if not self.ended:
            self._fill(world, self._begin_ns is not None and world.success())
        return asdict(self.outcome) | {'ended': self.ended, 'split': world.episode.split}
