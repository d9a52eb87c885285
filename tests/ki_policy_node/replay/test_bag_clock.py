"""A bag of a simulator that ran on a clock of its own, at its own pace, and was reset: replayed by its stamps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')

from ki_bags import message_builders
from ki_bags.reader import open_bag
from ki_bags.writer import BagWriter
from ki_policy_node.cycle.continuation import Timing
from ki_policy_node.policy.backends import Commissioning, CommissioningPolicy
from ki_policy_node.replay.bag_clock import BagClock
from ki_policy_node.replay.replay import Replay, ReplayOptions, replay
from ki_robot.contract.contract import Contract, load_contract

NS = 10**9
WALL_NS, SIM_NS = 1_700_000_000 * NS, 10 * NS


@pytest.fixture
def robot() -> Contract:
    whole = load_contract('arm_single')
    return whole.replace(cameras=whole.cameras[:1])


def write(path: Path, robot: Contract, stamp_of: Any, seconds: float = 4.0) -> Path:
    """Joints at 50 Hz and a camera at 25 Hz by the wall's clock; `stamp_of` says what they are stamped with."""
    rng = np.random.default_rng(0)
    [joints] = robot.state_streams
    rest = {column.name: 0.5 * (column.limits.lower + column.limits.upper) for column in robot.actions}
    with BagWriter(path, custom={'task': 'x'}) as bag:
        for tick in range(round(seconds * 50)):
            log_ns = WALL_NS + tick * NS // 50
            stamp_ns = stamp_of(tick / 50)
            if tick % 2 == 0:
                picture = message_builders.picture(stamp_ns, rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
                message_builders.put(bag, robot.cameras[0].topic, log_ns, picture)
            state = message_builders.state(robot, joints, stamp_ns, rest)
            message_builders.put(bag, joints.topic, log_ns, state)
    return path


def replayed(path: Path, robot: Contract) -> Replay:
    timing = Timing('latest', execute_steps=5)
    return replay(path, robot, CommissioningPolicy(robot, Commissioning()), ReplayOptions(timing))


def at_pace(pace: float) -> Any:
    return lambda seconds: SIM_NS + round(pace * seconds * NS)


@pytest.mark.parametrize('pace', [1.0, 0.5, 2.0])
def test_a_simulation_recorded_without_sim_time_is_replayed_by_its_stamps(
    robot: Contract, tmp_path: Path, pace: float
) -> None:
    found = replayed(write(tmp_path / 'bag', robot, at_pace(pace)), robot)
    assert len(found.chunks) == pytest.approx(4.0 * pace * robot.rate_hz / 5, abs=2)
    assert not found.rejected
    assert not found.problems
    assert all(-0.05 * NS <= age <= 0.1 * NS for made in found.chunks for age in made.ages_ns.values())
    assert found.end_ns < WALL_NS, 'times are of the simulator'


@pytest.mark.parametrize('begin_ns', [SIM_NS, WALL_NS])
def test_a_clock_that_is_set_in_mid_bag_is_said_and_the_replay_goes_on(
    robot: Contract, tmp_path: Path, begin_ns: int
) -> None:
    """A simulator that is reset; or a robot whose clock is set back by 20 s while the recorder's is not."""
    back_s = 2.0 if begin_ns == SIM_NS else 20.0
    path = write(tmp_path / 'bag', robot, lambda s: begin_ns + round((s if s < 2.0 else s - back_s) * NS))
    found = replayed(path, robot)
    [jump] = found.problems
    assert f'jumps by -{back_s:.1f} s' in jump
    assert len(found.chunks) >= 8, 'both halves are replayed'
    assert {made.observation_ns < begin_ns + 2 * NS for made in found.chunks} == {True}


def test_a_single_late_state_sets_no_clock(robot: Contract, tmp_path: Path) -> None:
    stamps = lambda s: WALL_NS + round((s - (30.0 if s == 1.0 else 0.0)) * NS)  # noqa: E731
    bag = open_bag(write(tmp_path / 'bag', robot, stamps, seconds=2.0))
    topic = f'/{robot.state_streams[0].topic}'
    clock = BagClock(bag, robot, {topic: (robot.state_streams[0].name,)})
    for message in bag.messages([topic]):
        clock.see(topic, bag.decode(message), message.log_ns)
        assert clock.now(message.log_ns) == message.log_ns
    assert not clock.jumps
