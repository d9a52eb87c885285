"""What a demonstration asks for."""

from __future__ import annotations

import pytest

from ki_sim.errors import SimError
from ki_sim.evaluate.demo_episodes import TASKS, choose


def test_no_instruction_comes_twice_and_tasks_take_turns() -> None:
    choices = choose(10)
    assert [choice.task for choice in choices] == [*TASKS, *TASKS]
    assert len({choice.instruction for choice in choices}) == 10
    assert len({choice.seed for choice in choices}) == 10


def test_the_same_seed_chooses_the_same_and_another_one_does_not() -> None:
    assert choose(4, ['demo'], 7) == choose(4, ['demo'], 7)
    assert choose(4, ['demo'], 7) != choose(4, ['demo'], 70)


def test_nonsense_is_refused_by_name() -> None:
    with pytest.raises(SimError, match='iron'):
        choose(1, ['iron'])
    with pytest.raises(SimError, match='seed'):
        choose(1, ['demo'], -1)
