"""Pace, lock step and judging of a running world, without ROS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ki_sim.errors import SimError
from ki_sim.node.realtime import LiveSimulation, SimSettings
from ki_sim.record.sim_bags import EPOCH_NS
from ki_sim.world.robot import GRIPPERS, POSITION_JOINTS
from ki_sim.world.world import STEP_NS, TICK_NS, World

GRIPPER = POSITION_JOINTS.index(GRIPPERS['left'])


class Listener:
    """Keeps what a world gives; `draw_s` makes showing pictures slow."""

    def __init__(self, draw_s: float = 0.0) -> None:
        self.ticks: list[Any] = []
        self.images: list[tuple[int, dict[str, np.ndarray]]] = []
        self.clocks: list[int] = []
        self.refusals: list[tuple[str, str]] = []
        self.errors: list[Exception] = []
        self._draw_s = draw_s

    def clock(self, time_ns: int) -> None:
        self.clocks.append(time_ns)

    def senses(self, tick: Any) -> None:
        self.ticks.append(tick)

    def pictures(self, time_ns: int, images: dict[str, np.ndarray]) -> None:
        time.sleep(self._draw_s)
        self.images.append((time_ns, images))

    def refused(self, source: str, sentence: str) -> None:
        self.refusals.append((source, sentence))

    def failed(self, error: Exception) -> None:
        self.errors.append(error)


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[LiveSimulation, Listener]]]:
    """`start(settings, draw_s)` makes a running world; it must not have failed at the end of the test."""
    made: list[tuple[LiveSimulation, Listener]] = []

    def begin(
        settings: SimSettings, draw_s: float = 0.0, sources: tuple[str, ...] = ()
    ) -> tuple[LiveSimulation, Listener]:
        listener = Listener(draw_s)
        live = LiveSimulation(settings, listener, sources)
        made.append((live, listener))
        live.start()
        return live, listener

    yield begin
    for live, listener in made:
        live.close()
        assert listener.errors == []


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'it did not happen'
        time.sleep(0.005)


def test_pictures_give_way_before_time_does(start: Callable[..., tuple[LiveSimulation, Listener]]) -> None:
    live, _ = start(SimSettings(camera_hz=50.0), draw_s=0.1)
    until(lambda: live.counters.ticks > 5)
    begun = time.monotonic()

    def keeps_pace() -> bool:
        ticks, begin = live.counters.ticks, time.monotonic()
        time.sleep(1.5)
        return (live.counters.ticks - ticks) * TICK_NS * 1e-9 > 0.8 * (time.monotonic() - begin)

    until(keeps_pace, 30.0)  # at once, unless other work has the cores
    assert live.counters.left_out > 40
    assert 5 <= live.counters.pictures <= 5 + (time.monotonic() - begun) / 0.1


def test_stamps_are_as_even_as_the_ticks(start: Callable[..., tuple[LiveSimulation, Listener]]) -> None:
    _, listener = start(SimSettings())
    until(lambda: len(listener.ticks) > 60)
    stamps = np.array([tick.time_ns for tick in listener.ticks])
    steps = np.diff(stamps[10:])
    assert (steps > 0).all()
    assert abs(float(np.median(steps)) - TICK_NS) < 2e5
    assert abs(time.time_ns() - int(stamps[-1])) < 1e9


def test_the_clock_goes_on_over_a_reset_and_runs_ahead_of_the_wall(
    start: Callable[..., tuple[LiveSimulation, Listener]],
) -> None:
    live, listener = start(SimSettings(clock=True, speed=0.0, camera_hz=2.0))
    begin = time.process_time()  # what other work takes of the cores does not count
    until(lambda: len(listener.clocks) > 300, 30.0)
    assert time.process_time() - begin < 2.5, 'slower than the wall clock'
    live.call(lambda: live.reset(4, 'stack', None, 'train'))
    until(lambda: live.world.time_ns > STEP_NS)
    live.close()
    assert listener.clocks[0] == EPOCH_NS
    assert (np.diff(listener.clocks) == TICK_NS).all()
    assert [tick.time_ns for tick in listener.ticks] == listener.clocks
    assert live.world.episode.task == 'stack'


def test_every_picture_is_there_when_time_waits_for_it(start: Callable[..., tuple[LiveSimulation, Listener]]) -> None:
    live, listener = start(SimSettings(clock=True, speed=0.0, camera_hz=20.0), draw_s=0.01)
    until(lambda: len(listener.images) > 10)
    live.close()
    assert [time_ns - EPOCH_NS for time_ns, _ in listener.images] == [i * STEP_NS for i in range(len(listener.images))]
    assert live.counters.left_out == 0


def test_a_picture_is_what_the_world_itself_would_draw(start: Callable[..., tuple[LiveSimulation, Listener]]) -> None:
    live, listener = start(SimSettings(task='stack', seed=7, clock=True, speed=0.0, camera_hz=20.0))
    until(lambda: len(listener.images) > 4)
    live.close()
    with World('stack', 7) as world:
        for i in range(4):
            for name, image in listener.images[i][1].items():
                assert (image == world.image(name)).all(), f'{name} at {i}'
            world.advance(STEP_NS)


def test_in_lock_step_time_waits_for_every_controller(start: Callable[..., tuple[LiveSimulation, Listener]]) -> None:
    sources = ('left', 'right')
    live, _ = start(SimSettings(clock=True, speed=0.0, lock_step=True, operated=True), sources=sources)
    opening = 0.02

    def nudge(world: World, offset_ns: int) -> None:
        world.command_gripper('left', opening)

    time.sleep(0.3)
    assert live.counters.ticks == 0, 'time went on although the operator has not begun'
    live.command('left', nudge)
    time.sleep(0.15)
    assert live.counters.ticks == 0
    live.command('right', nudge)
    until(lambda: live.counters.ticks == 5)
    time.sleep(0.15)
    assert live.counters.ticks == 5


def test_in_lock_step_without_an_operator_an_idle_robot_does_not_stop_the_world(
    start: Callable[..., tuple[LiveSimulation, Listener]],
) -> None:
    live, _ = start(SimSettings(clock=True, speed=0.0, lock_step=True), sources=('left',))
    until(lambda: live.counters.ticks >= 10)
    assert live.counters.waits >= 2


def test_a_job_is_done_while_time_stands_still(start: Callable[..., tuple[LiveSimulation, Listener]]) -> None:
    live, _ = start(SimSettings(clock=True, speed=0.0, lock_step=True, operated=True), sources=('left',))
    assert live.call(lambda: threading.current_thread().name) == 'physics'
    assert live.call(lambda: live.reset(9, 'demo', None, 'train')) == live.world.instruction
    with pytest.raises(SimError, match="task 'juggle' is not known"):
        live.call(lambda: live.reset(9, 'juggle', None, 'train'))
    assert live.world.episode.seed == 9, 'a reset that fails changes nothing'


def test_a_refused_command_is_told_and_the_rest_goes_on(start: Callable[..., tuple[LiveSimulation, Listener]]) -> None:
    live, listener = start(SimSettings())
    live.command('left_gripper', lambda world, offset: world.command_gripper('left', float('nan')))
    live.refuse('left_gripper', 'two publishers')
    live.command('left_gripper', lambda world, offset: world.command_gripper('left', 0.03))
    until(lambda: listener.ticks and abs(listener.ticks[-1].position[GRIPPER] - 0.03) < 0.005)
    assert [source for source, _ in listener.refusals] == ['left_gripper', 'left_gripper']
    assert 'not finite' in listener.refusals[0][1]
    assert live.counters.refused == 2


def test_the_emergency_stop_outlives_a_reset(start: Callable[..., tuple[LiveSimulation, Listener]]) -> None:
    live, listener = start(SimSettings())
    live.call(lambda: live.press(True))
    live.call(lambda: live.reset(2, 'demo', None, 'train'))
    live.command('left_gripper', lambda world, offset: world.command_gripper('left', 0.0))
    until(lambda: listener.refusals)
    assert 'emergency stop' in listener.refusals[0][1]
    live.call(lambda: live.press(False))
    live.command('left_gripper', lambda world, offset: world.command_gripper('left', 0.0))
    until(lambda: listener.ticks[-1].position[GRIPPER] < 0.02)


def test_an_episode_counts_from_its_first_command(start: Callable[..., tuple[LiveSimulation, Listener]]) -> None:
    live, _ = start(SimSettings(clock=True, speed=0.0, camera_hz=1.0))
    until(lambda: live.world.time_ns > 30 * 10**9, 30.0)
    assert live.monitor.ended == ''
    live.command('base', lambda world, offset: world.command_base((0.0, 0.0, 0.1)))
    until(lambda: live.monitor.ended, 30.0)
    said = live.monitor.report(live.world)
    assert said['ended'] == 'time'
    assert not said['success']
    assert said['time_s'] == pytest.approx(live.world.episode.limit_s, abs=0.06)


@pytest.mark.parametrize(
    ('wrong', 'words'),
    [
        ({'speed': -1.0, 'clock': True}, 'speed is -1'),
        ({'speed': 0.0}, 'set clock to true'),
        ({'lock_step': True}, 'set clock to true'),
        ({'camera_hz': 0.0}, 'camera_hz is 0'),
    ],
)
def test_settings_that_cannot_be_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SimError, match=words):
        SimSettings(**wrong)
