"""The robot without a body speaks its contract, and the demonstration's file can be read."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki._processes import read_plan


def test_the_demonstration_names_modules_that_exist(root: Path) -> None:
    plan = read_plan(root / 'config' / 'demo.yaml')
    assert [program.name for program in plan.programs] == ['recorder', 'robot']
    for program in plan.programs:
        assert (root / f'{program.command[2].replace(".", "/")}.py').is_file()


@pytest.mark.ros
def test_every_stream_of_the_contract_arrives_and_can_be_read() -> None:
    from ki_policy_node import ros
    from ki_policy_node.generated_robot import image_type, state_type
    from ki_robot.contract import load_contract
    from ki_robot.images import decode_compressed
    from ki_robot.messages import joint_positions, stamp_ns

    contract = load_contract('bimanual_mobile')
    command = [
        sys.executable,
        '-m',
        'ki_policy_node.generated_robot',
        '--ros-args',
        '-p',
        'width:=320',
        '-p',
        'height:=240',
    ]
    robot = subprocess.Popen(command)
    heard: dict[str, Any] = {}
    try:
        with ros.node('listener') as node:
            from rclpy.qos import qos_profile_sensor_data

            streams = [(camera.topic, image_type(camera.transport)) for camera in contract.cameras]
            streams += [(stream.topic, state_type(stream)) for stream in contract.state_streams]
            for topic, kind in streams:
                node.create_subscription(
                    kind, topic, lambda message, topic=topic: heard.update({topic: message}), qos_profile_sensor_data
                )
            assert ros.spin_until(node, lambda: len(heard) == len(streams), 15.0), sorted(heard)
    finally:
        robot.send_signal(signal.SIGINT)
        assert robot.wait(10) == 0
    for camera in contract.cameras:
        image = decode_compressed(heard[camera.topic])
        assert image.shape == (240, 320, 3)
        assert image.std() > 20
    joints = [column.name.removesuffix('/position') for column in contract.state if column.source == 'joint_states']
    positions = joint_positions(heard['joint_states'], joints)
    assert np.isfinite(positions).all()
    assert np.ptp(positions) > 0
    assert stamp_ns(heard['joint_states'].header) > 0
