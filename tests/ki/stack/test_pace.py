"""Whether a machine keeps up with real time: what is measured, what is said, and what the demonstration makes of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from ki.commands import demo
from ki.stack.pace import SPEEDS, Load, LoadMeter
from ki.stack.sim_stack import Stack
from ki_sim.evaluate.demo_episodes import DemoEpisode
from ki_sim.evaluate.episode_runner import EpisodeOptions

STEP_NS = 50_000_000


@pytest.mark.parametrize(
    ('load', 'said', 'speed'),
    [
        (Load(), '', SPEEDS[0]),
        (Load(0.93, 0.4, 6.0), '', SPEEDS[0]),
        (Load(0.7), 'a second of simulation took 1.4 s', SPEEDS[0]),
        (Load(lateness=2.0), 'the executor was up to 2.0 control steps late', SPEEDS[1]),
        (Load(latency=25.0), 'an inference took 25 control steps', SPEEDS[1]),
        (Load(0.0, missed=True), 'a second of simulation took 1000.0 s', SPEEDS[1]),
        (Load(missed=True), 'an inference took longer than a chunk lasts', SPEEDS[1]),
    ],
)
def test_a_machine_that_is_too_slow_is_told_why_and_how_slowly_to_go(load: Load, said: str, speed: float) -> None:
    assert load.too_slow.startswith(said)
    assert bool(load.too_slow) == bool(said)
    assert load.speed == speed


@dataclass
class Node:
    """Remembers who listens to what."""

    heard: dict[str, Any] = field(default_factory=dict)

    def create_subscription(self, kind: type, topic: str, use: Any, qos: object) -> None:
        self.heard[topic] = use


@pytest.mark.ros
def test_the_load_is_measured_from_one_episode_to_the_next() -> None:
    from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
    from ki_msgs.msg import PolicyStatus
    from std_msgs.msg import Float32

    node = Node()
    meter = LoadMeter(node, STEP_NS)
    for factor in (0.5, 0.9, 0.6):
        node.heard['sim_robot/real_time_factor'](Float32(data=factor))
    late = DiagnosticStatus(name='chunk_executor: commands', values=[KeyValue(key='lateness p99 [ms]', value='75.0')])
    node.heard['/diagnostics'](DiagnosticArray(status=[DiagnosticStatus(name='other'), late]))
    for count, taken in ((1, 100), (1, 100), (2, 200), (3, 300)):
        status = PolicyStatus(chunks_published=count, state=PolicyStatus.STATE_RUNNING)
        status.inference_time.nanosec = taken * 1_000_000
        node.heard['policy_node/status'](status)
    assert meter.load() == Load(pytest.approx(0.6), 1.5, 4.0)
    slow = PolicyStatus(state=PolicyStatus.STATE_HOLDING, hold_reason=PolicyStatus.HOLD_INFERENCE_LATE)
    node.heard['policy_node/status'](slow)
    assert meter.load().missed
    meter.begin()
    assert meter.load() == Load()


def test_a_slower_simulator_publishes_the_clock_that_all_others_follow_and_is_waited_for() -> None:
    simulator, executor = Stack(None, plan=True, speed=0.5).programs()
    assert (simulator.parameters['clock'], simulator.parameters['speed']) == (True, 0.5)
    assert executor.parameters['use_sim_time']
    assert executor.parameters['state_timeout'] == 5.0
    assert 'state_timeout' not in Stack(None, plan=True).programs()[1].parameters
    assert EpisodeOptions(speed=0.25).patient(1.0) == 4.0
    assert EpisodeOptions(speed=4.0).patient(1.0) == EpisodeOptions(speed=0.0).patient(1.0) == 1.0


class Stage:
    """In place of the processes: what comes of each episode, and at which speed it was played."""

    played: list[tuple[str, float]]
    ends: list[tuple[bool, float | None]]  # success, and how slowly to go on

    def __init__(self, stack: Any, out: Path, console: Any, domain: int, lines: demo.Lines, total: int) -> None:
        self.stack = stack

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        yield

    def episode(self, port: None, shown: demo.Shown, may_step: bool) -> float | None:
        shown.success, slower = self.ends.pop(0)
        self.played.append((shown.instruction, self.stack.speed))
        assert may_step == (not self.stack.slowed)
        return slower


@pytest.mark.parametrize(
    ('ends', 'played'),
    [
        ([(True, None), (False, None)], [('a', 1.0), ('b', 1.0)]),
        # Where it failed because the machine is too slow, it is played again.
        ([(False, 0.25), (True, None), (True, None)], [('a', 1.0), ('a', 0.25), ('b', 0.25)]),
        # Where it succeeded nonetheless, only what follows is slower.
        ([(True, 0.5), (False, None)], [('a', 1.0), ('b', 0.5)]),
    ],
)
def test_what_failed_for_a_slow_machine_is_played_again_at_its_pace(
    ends: list[Any], played: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stage = type('Played', (Stage,), {'played': [], 'ends': list(ends)})
    monkeypatch.setattr(demo, '_Show', stage)
    monkeypatch.setattr(demo, '_nobody_there', lambda domain: None)
    monkeypatch.setenv('ROS_DOMAIN_ID', '7')
    lines: demo.Lines = []
    choices = [DemoEpisode('demo', seed, name) for seed, name in enumerate('ab')]
    demo._play(Stack(None), choices, tmp_path, Console(), lines, may_step=True)
    assert stage.played == played
    assert [(shown.instruction, shown.speed) for shown, _ in lines] == [played[-2], played[-1]]


def test_the_report_says_how_fast_time_passed() -> None:
    assert demo._pace([1.0, 1.0]) == 'in real time'
    assert demo._pace([0.5]) == 'at 0.5 of real time, by the clock of the simulator'
    assert demo._pace([1.0, 0.25, 0.25]).startswith('1 in real time and 2 at 0.25 of real time')
