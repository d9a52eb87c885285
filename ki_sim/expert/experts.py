"""Which expert does which task: a law where there is one, the scripted plan elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from ki_sim.expert.motions import ExpertStep
from ki_sim.expert.reactive_expert import ReactiveExpert
from ki_sim.expert.scripted_expert import ScriptedExpert
from ki_sim.expert.situation import tasks_with_laws
from ki_sim.world.kinematics import Arms
from ki_sim.world.world import World


def expert_steps(world: World, arms: Arms | None = None) -> Iterator[ExpertStep]:
    """The expert's steps of a world's episode, one per 50 ms; the caller steps the world between them."""
    if world.episode.task in tasks_with_laws():
        return ReactiveExpert(world, arms).moves()
    return ScriptedExpert(world, arms=arms).moves()
