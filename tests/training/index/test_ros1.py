"""A bag of ROS 1, from its connections to samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ki_robot.contract.contract import Contract
from training.index.index import index_bags
from training.samples.dataset import EpisodeDataset

NS, START_NS = 10**9, 1_700_000_000 * 10**9


def write_bag(path: Path) -> Path:
    """Two seconds of an arm with a camera, as a driver of ROS 1 publishes them."""
    from rosbags.rosbag1 import Writer
    from rosbags.typesys import Stores, get_typestore

    store = get_typestore(Stores.ROS1_NOETIC)
    kinds: dict[str, Any] = store.types
    nothing = np.zeros(0)

    def header(number: int, time_ns: int) -> Any:
        stamp = kinds['builtin_interfaces/msg/Time'](sec=time_ns // NS, nanosec=time_ns % NS)
        return kinds['std_msgs/msg/Header'](seq=number, stamp=stamp, frame_id='')

    with Writer(path) as bag:
        links = {
            kind: bag.add_connection(topic, f'sensor_msgs/msg/{kind}', typestore=store)
            for topic, kind in (('/joint_states', 'JointState'), ('/scene/image_raw/compressed', 'CompressedImage'))
        }
        for tick in range(100):
            now_ns = START_NS + tick * NS // 50
            values = np.array([0.01 * tick, 0.5])
            made = {'JointState': (header(tick, now_ns), ['joint1', 'joint2'], values, nothing, nothing)}
            if tick % 2 == 0:
                data = cv2.imencode('.jpg', np.full((24, 32, 3), 2 * tick, np.uint8))[1].reshape(-1)
                made['CompressedImage'] = (header(tick, now_ns), 'jpeg', data)
            for kind, fields in made.items():
                message = kinds[f'sensor_msgs/msg/{kind}'](*fields)
                bag.write(links[kind], now_ns, store.serialize_ros1(message, f'sensor_msgs/msg/{kind}'))
    return path


def test_a_bag_of_ros_1_is_indexed_like_one_of_ros_2(toy: Contract, tmp_path: Path) -> None:
    robot = toy.replace(
        cameras=toy.cameras[:1],
        state_streams=toy.state_streams[:1],
        state=toy.state[:2],
        actions=toy.actions[:2],
        outputs=(),
    )
    index = index_bags(write_bag(tmp_path / 'run.bag'), robot, tmp_path / 'index')
    assert index.problems.kinds() == {'action_from_state', 'no_instruction'}
    data = EpisodeDataset(index, resize=False)
    assert len(data) >= 38
    for sample in (data[3], data[len(data) - 2]):
        tick = (sample.stamp_ns - START_NS) / NS * 50
        assert sample.state_S[0] == 0.01 * np.floor(tick + 1e-6)
        assert abs(float(sample.images['scene'].mean()) - 2 * (2 * np.floor(tick / 2 + 1e-6))) < 3
