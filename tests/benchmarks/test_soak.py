"""The soak says what grows and which holds were late. No robot is started."""

from __future__ import annotations

import importlib
import os
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

STEADY = {'verdict': 'steady'}


@pytest.fixture
def program(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(root / 'benchmarks')
    return importlib.import_module('soak')


def memory(growth_mb_h: float, minutes: int = 60, noise: float = 0.3) -> list[tuple[float, float]]:
    """A process that warms up for five minutes and then grows."""
    ages_s = np.arange(0.0, minutes * 60.0, 5.0)
    values = 150.0 - 50.0 * np.exp(-ages_s / 60.0) + growth_mb_h * ages_s / 3600.0
    return list(zip(ages_s, values + np.random.default_rng(0).normal(0.0, noise, len(ages_s)), strict=True))


@pytest.mark.parametrize(('growth', 'word'), [(0.0, 'steady'), (0.3, 'steady'), (4.0, 'grows'), (1100.0, 'grows')])
def test_growth_is_told_after_the_warm_up(program: ModuleType, growth: float, word: str) -> None:
    found = program.slope(memory(growth))
    assert found['low'] <= growth + 0.2
    assert found['high'] >= growth - 0.2
    assert found['an_hour'] == pytest.approx(growth, abs=0.5)
    assert program.growth_of(found, program.GROWS['memory_mb']) == word


def test_a_short_life_and_a_restless_one_say_that_nobody_can_tell(program: ModuleType) -> None:
    short = program.slope(memory(1000.0, minutes=5))
    assert program.growth_of(short, program.GROWS['memory_mb']) == 'too short to tell'
    restless = program.slope(memory(0.0, minutes=14, noise=30.0))
    assert program.growth_of(restless, program.GROWS['memory_mb']) == 'too short to tell'
    assert program.slope([]) == {}


def test_a_hold_that_never_came_is_late(program: ModuleType) -> None:
    holds = [program.Hold('kill', 'torch', 0.1, late_s=0.2, back_s=5.0) for _ in range(98)]
    holds.append(program.Hold('camera', 'torch', 0.2, late_s=-0.1, back_s=0.2))
    assert program.verdict([], STEADY, holds)['holds_within_0.3_s']
    holds.append(program.Hold('estop', 'torch', 0.3, late_s=0.4, back_s=0.2))
    assert program.counted(holds)['all']['within_0.3_s'] == 0.99
    assert program.verdict([], STEADY, holds)['holds_within_0.3_s']
    holds.append(program.Hold('estop', 'torch', 0.4))
    said = program.verdict([], STEADY, holds)
    assert not said['holds_within_0.3_s']
    assert not said['every_fault_was_a_hold']
    assert not said['went_on_after_every_fault']
    found = program.counted(holds)['estop']
    assert [found[name] for name in ('faults', 'held', 'went_on', 'worst_s', 'within_0.3_s')] == [2, 1, 1, 0.4, 0.0]


def test_a_late_hold_counts_and_says_that_the_machine_stood_still(program: ModuleType, tmp_path: Path) -> None:
    holds = [program.Hold('kill', 'torch', 0.1, late_s=0.2), program.Hold('kill', 'torch', 0.2, late_s=0.9)]
    holds[1].stood_still_s = 0.7
    found = program.counted(holds)['kill']
    assert found['within_0.3_s'] == 0.5
    assert found['within_0.3_s_where_the_machine_never_stood_still'] == 1.0

    stalls = program.Stalls(tmp_path / 'stalls.txt')
    stalls.end()
    (tmp_path / 'stalls.txt').write_text('100.500 0.400\n200.000 0.100\n')
    assert stalls.within(100 * 10**9, 101 * 10**9) == pytest.approx(0.4)
    assert stalls.within(round(100.3e9), 101 * 10**9) == pytest.approx(0.2)
    assert stalls.within(0, 300 * 10**9) == pytest.approx(0.5)
    assert stalls.within(101 * 10**9, 199 * 10**9) == 0.0


def test_nothing_grows_is_said_only_of_what_was_seen(program: ModuleType) -> None:
    def life(*words: str, process: str = 'recorder') -> dict[str, Any]:
        verdicts = {name: {'verdict': word} for name, word in zip(program.GROWS, words, strict=True)}
        return {'process': process} | verdicts

    unknown = 'too short to tell'
    assert program.verdict([life(unknown, unknown, unknown)], STEADY, [])['nothing_grows'] == unknown
    assert program.verdict([life('steady', 'steady', 'steady')], STEADY, [])['nothing_grows'] == 'yes'
    assert program.verdict([life('steady', 'steady', 'grows')], STEADY, [])['nothing_grows'] == 'no'
    whole, short = life('steady', 'steady', 'steady'), life(unknown, unknown, unknown)
    assert program.verdict([whole, short], STEADY, [])['nothing_grows'] == 'yes'
    assert program.verdict([whole], {'verdict': 'grows'}, [])['nothing_grows'] == 'no'
    other = life(unknown, 'steady', 'steady', process='policy_node')
    assert program.verdict([whole, other], STEADY, [])['nothing_grows'] == unknown


def test_the_hours_are_halves_that_end_with_kills(program: ModuleType) -> None:
    parts = list(program.script(1.0))
    assert [policy for policy, _, _ in parts] == list(program.POLICIES)
    assert sum(breaking + killing for _, breaking, killing in parts) == pytest.approx(3600.0)
    assert len(list(program.script(3.0))) == 6
    assert [policy for policy, _, _ in program.script(0.02)] == list(program.POLICIES)


def test_a_process_is_sampled_while_it_lives(program: ModuleType) -> None:
    here = program.Life('test', os.getpid(), time.monotonic())
    here.sample()
    [(age_s, memory_mb, handles, threads, cpu_s)] = here.rows
    assert age_s < 1.0
    assert memory_mb > 10.0
    assert handles >= 3
    assert threads >= 1
    assert cpu_s > 0.0
    gone = program.Life('gone', 2**22 + 1, time.monotonic())
    gone.sample()
    assert gone.rows == []


def test_the_robot_of_the_soak_is_one_that_can_be_had(program: ModuleType, tmp_path: Path) -> None:
    from ki_robot.contract.contract import load_contract

    contract = load_contract(str(program.robot_file(tmp_path)))
    assert {output.kind for output in contract.outputs} == {'joint_trajectory', 'forward_command'}
