"""Which expert does which task: a law where there is one, the scripted plan elsewhere."""

from __future__ import annotations

from collections.abc import Iterator

from ki_sim.expert.motions import ExpertStep
from ki_sim.expert.reactive_expert import ReactiveExpert
from ki_sim.expert.scripted_expert import ScriptedExpert
from ki_sim.expert.situation import tasks_with_laws
from ki_sim.world.kinematics import Arms
from ki_sim.world.world import World

CORRECTED = 10  # steps between two looks of an operator: half a second, as of a policy


def expert_steps(world: World, arms: Arms | None = None) -> Iterator[ExpertStep]:
    """The expert's steps of a world's episode, one per 50 ms; the caller steps the world between them."""
    if world.episode.task in tasks_with_laws():
        return ReactiveExpert(world, arms).moves()
    return ScriptedExpert(world, arms=arms).moves()


def correcting_steps(world: World, arms: Arms | None = None) -> Iterator[ExpertStep]:
    """The same as a policy that learned from moments would do it: at the pace of the law, hands open or shut.

    An expert that looks at where its hand is four times as often, and leads it, goes half as fast. Where both are
    learned from, the same state is answered in two ways, and the policy does worse than before (docs/how-to/takeover).
    """
    if world.episode.task in tasks_with_laws():
        return ReactiveExpert(world, arms, every=CORRECTED, led=False).moves()
    return expert_steps(world, arms)
