"""What the node does with pictures: only those that an observation may hold are decoded, in threads of their own."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

pytest.importorskip('ki_msgs')
from sensor_msgs.msg import CompressedImage, JointState

from ki_policy_node.cycle.continuation import Planner, Timing
from ki_policy_node.policy.backends import Commissioning, CommissioningPolicy
from ki_policy_node.policy.run import PolicyRun
from ki_policy_node.policy.runner import PolicyRunner
from ki_policy_node.policy.status_report import StatusReport
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.messages.arrays import fill_compressed, fill_joint_state, set_time

FRAMES, PERIOD_S = 45, 1 / 30


class Host:
    """A node without ROS: the clock, and what was published."""

    def __init__(self) -> None:
        self.published: list[Any] = []
        self.log = SimpleNamespace(info=print, warning=print, error=print)

    now_ns = staticmethod(time.time_ns)

    def dry_run(self) -> bool:
        return False

    def publish_chunk(self, chunk: Any, dry: bool) -> None:
        self.published.append(chunk)

    def publish_subtask(self, text: str) -> None: ...

    def publish_status(self) -> None: ...

    def on_run_end(self, *_: Any) -> None: ...

    def get_logger(self) -> Any:
        return self.log


def arms() -> Contract:
    """The cameras and joints of bimanual_mobile, without its base: one stream of states."""
    contract = load_contract('bimanual_mobile')
    kept = [column for column in contract.state if column.source == 'joint_states']
    names = {column.name for column in kept}
    return contract.replace(
        state=tuple(kept),
        actions=tuple(column for column in contract.actions if column.name in names),
        outputs=tuple(output for output in contract.outputs if names.issuperset(output.columns)),
        state_streams=tuple(stream for stream in contract.state_streams if stream.name == 'joint_states'),
    )


def test_only_pictures_that_a_due_chunk_waits_for_are_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = set(threading.enumerate())
    decoded: list[str] = []
    original = cv2.imdecode
    monkeypatch.setattr(
        cv2, 'imdecode', lambda *given: decoded.append(threading.current_thread().name) or original(*given)
    )
    contract = arms()
    host = Host()
    report = StatusReport(SimpleNamespace(get_logger=host.get_logger))
    runner = PolicyRunner(host, report)
    planner = Planner(CommissioningPolicy(contract, Commissioning()), Timing('latest', execute_steps=10))
    runner.configure(contract, planner, needs_words=False, frame_wait_ns=100_000_000)
    runner.active = True
    runner.begin(PolicyRun(dry_run=False))
    picture = np.random.default_rng(0).integers(0, 255, (480, 640, 3)).astype(np.uint8)
    message = fill_compressed(CompressedImage(), picture, 1)
    joints = [name.rpartition('/')[0] for name in contract.state_names]
    pose = np.full(len(joints), 0.05)
    for _ in range(FRAMES):
        now = time.time_ns()
        state = fill_joint_state(JointState(), joints, pose, now)
        runner.store('joint_states', False, state)
        for camera in contract.cameras:
            set_time(message.header.stamp, now)
            runner.store(camera.name, True, message)
        time.sleep(PERIOD_S)
    runner.end(0, 'the test is over')
    runner.close()
    assert len(host.published) >= 2
    # A chunk rests on one picture of each camera; on a busy machine another may come before the last is looked at.
    assert len(decoded) < FRAMES * len(contract.cameras) / 2
    assert any(name.startswith('decode') for name in decoded)
    assert not set(threading.enumerate()) - before, 'its threads have ended'
