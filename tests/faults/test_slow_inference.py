"""An inference slower than usual: its chunk is used from the step that is due, the late part is never replayed."""

from __future__ import annotations

import time

import numpy as np
import pytest

from ki_robot.actions.interpolation import interpolate
from ki_robot.messages.arrays import time_ns, to_chunk

pytestmark = pytest.mark.ros


def test_the_late_part_of_a_chunk_is_skipped(rig):
    rig.start_executor()
    rig.start_policy(latency=0.6, mode='latest', execute_steps=5, period=3.0)
    rig.running()
    # Who plans while the robot stands begins the chunk where it stands. On a busy machine that is not only the first.
    moving_ns = rig.node.get_clock().now().nanoseconds

    def made_in_motion():
        return [chunk for _, chunk in list(rig.chunks) if time_ns(chunk.observation_stamp) > moving_ns]

    # On a busy machine two chunks may arrive at once.
    rig.until('three chunks', lambda: len(made_in_motion()) >= 3 and len(rig.commands['hand']) > 100, 15.0)
    ros_minus_steady = rig.node.get_clock().now().nanoseconds - time.monotonic_ns()
    arrivals = [arrived + ros_minus_steady for arrived, _ in rig.chunks]
    chunks = [to_chunk(message) for _, message in rig.chunks]
    for chunk, arrived in zip(chunks, arrivals, strict=True):
        assert (arrived - chunk.observation_ns) / 1e9 >= 0.6
        if chunk.observation_ns > moving_ns:
            assert (arrived - chunk.start_ns) / 1e9 >= 0.6
    # While a chunk is followed, the hand is commanded what the chunk says for that very moment.
    column = rig.contract.action_names.index('gripper/position')
    sent = [(t + ros_minus_steady, message.data[0]) for t, message in list(rig.commands['hand'])]
    # A busy test hears of a chunk long after the executor does: no chunk follows sooner than its inference took.
    soonest = [chunk.observation_ns + 600_000_000 for chunk in chunks]
    windows = [
        [(t, value) for t, value in sent if since + 200_000_000 < t < until]
        for since, until in zip(arrivals[:-1], soonest[1:], strict=True)
    ]
    k = max(range(len(windows)), key=lambda index: len(windows[index]))
    settled = windows[k]
    assert len(settled) > 10
    times = np.array([t for t, _ in settled])
    due, _ = interpolate(chunks[k], times)
    assert np.abs(np.array([value for _, value in settled]) - due[:, column]).max() < 0.05
    first = chunks[k].data_HN[0, column]
    assert np.abs(due[:, column] - first).max() > 0.05, 'the motion is too small to tell a replay'


def test_a_chunk_that_ends_before_the_next_is_ready_holds_the_robot(rig):
    rig.start_executor(max_observation_age=10.0)
    rig.start_policy(latency=2.0, execute_steps=40)
    rig.running()
    rig.until('the chunk has run out', lambda: 'run out' in rig.state or 'run out' in rig.status.message, 15.0)
    rig.until('the arm holds', lambda: rig.hold_points(0))
