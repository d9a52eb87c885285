"""Which episodes a demonstration shows: tasks in turn, and no instruction twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ki_sim.node.settings import SimRobotSettings
from ki_sim.tasks import tasks

# Short ones, so that ten episodes take two minutes; one of each kind before the first kind comes again.
TASKS = ('demo', 'stack', 'put_in_bin', 'next_to', 'hand_over')
FIRST_SEED = 1_000_000  # no recording uses seeds this high
TRIES = 100


@dataclass(frozen=True)
class DemoEpisode:
    """One episode to show."""

    task: str
    seed: int
    instruction: str


def choose(count: int, names: Sequence[str] = TASKS, first_seed: int = FIRST_SEED) -> list[DemoEpisode]:
    """Episodes of some tasks in turn, with consecutive seeds except those that would repeat an instruction.

    Raises:
        SimError: an unknown task, or a negative seed.
    """
    for name in names:
        SimRobotSettings.parse({'task': name, 'seed': first_seed}, 'episodes')
    found: list[DemoEpisode] = []
    seed = first_seed
    for index in range(count):
        name, said = names[index % len(names)], {choice.instruction for choice in found}
        for _ in range(TRIES):
            choice = DemoEpisode(name, seed, tasks.episode(name, seed, None, 'train').instruction)
            seed += 1
            if choice.instruction not in said:
                break
        found.append(choice)
    return found
