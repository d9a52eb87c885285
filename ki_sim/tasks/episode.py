"""What an episode of a task is: a scene, a goal in it, and the words that ask for it."""

from __future__ import annotations

from dataclasses import dataclass

from ki_sim.world.scene import Scene


@dataclass(frozen=True)
class Goal:
    """What to do to which objects: `objects` by index, and per object its place: a bin's side, 'top', 'beside', ...

    `other` is the object they are put on or beside; `giver` and `taker` are hands.
    """

    objects: tuple[int, ...]
    places: tuple[str, ...] = ()
    other: int = -1
    giver: str = ''
    taker: str = ''


@dataclass(frozen=True)
class TaskEpisode:
    """A scene and what is asked of the robot in it."""

    task: str
    seed: int
    goal_seed: int
    split: str
    scene: Scene
    goal: Goal
    instruction: str
    limit_s: float

    def label(self, index: int) -> str:
        """How people call object `index`."""
        return self.scene.objects[index].label
