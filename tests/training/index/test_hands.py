"""Hand poses of a recording: the joints' messages give the index what they give the live node."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ki_bags import message_builders
from ki_bags.writer import BagWriter
from ki_policy_node.replay.recorded_commands import Recorded
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.observation.buffer import ObservationBuffer
from ki_robot.observation.observation import Observation
from ki_robot.space.robot_space import RobotSpace
from training.index.episodes import IndexOptions
from training.index.index import index_bags

MS, START_NS = 1_000_000, 1_700_000_000 * 10**9
HOME = np.array([0.1, 0.1, 0.41, -1.5532, 2.2127, 0.0, 0.9113, 0.41, -0.41, -1.5532, 2.2127, 0.0, 0.9113, -0.41])


@pytest.fixture(scope='module')
def contract() -> Contract:
    hands = load_contract('bimanual_hands')
    return hands.replace(cameras=hands.cameras[:1])


def joints_at(seconds: float) -> np.ndarray:
    return HOME + 0.2 * np.sin(2 * seconds + np.arange(14)) * (np.arange(14) > 1)


def messages(contract: Contract) -> list[tuple[int, str, object]]:
    """Two seconds: joint states at 100 Hz, pictures and commands at 20 Hz, commands a little ahead."""
    robot, found = contract.robot, []
    for tick in range(200):
        now_ns = START_NS + tick * 10 * MS
        values = dict(zip(robot.state_names, joints_at(tick / 100).tolist(), strict=True))
        found.append((now_ns, 'joint_states', message_builders.state(contract, robot.state_streams[0], now_ns, values)))
        if tick % 5 == 0:
            picture = message_builders.picture(now_ns, np.full((16, 24, 3), tick, np.uint8))
            found.append((now_ns, contract.cameras[0].topic, picture))
            told = dict(zip(robot.action_names, joints_at(tick / 100 + 0.05).tolist(), strict=True))
            for output in robot.outputs:
                row = [told[name] for name in output.columns]
                found.append((now_ns, output.topic, message_builders.command(output, now_ns, row)))
    return found


@pytest.fixture(scope='module')
def bag(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('hands') / 'bag'
    with BagWriter(path, custom={'task': 'x'}) as writer:
        for now_ns, topic, message in messages(contract):
            message_builders.put(writer, topic, now_ns, message)
    return path


def test_a_recording_has_the_poses_that_the_live_node_sees(contract: Contract, bag: Path, tmp_path: Path) -> None:
    index = index_bags(bag, contract, tmp_path / 'index', IndexOptions())
    [(entry, about)] = index.episodes
    arrays = np.load(entry.folder / about.file)
    assert arrays['state'].shape[1] == arrays['actions'].shape[1] == 10
    buffer, streams = ObservationBuffer(contract), {each.topic: each.name for each in contract.streams}
    buffer.set_instruction('x')
    stamps, seen = arrays['stamps'].tolist(), []
    for now_ns, topic, message in [*messages(contract), (2**62, '', None)]:
        while stamps and stamps[0] < now_ns:
            observation = buffer.sample(stamps.pop(0))
            assert isinstance(observation, Observation)
            seen.append(observation.state)
        if topic in streams:
            buffer.push(streams[topic], message, now_ns)
    np.testing.assert_array_equal(arrays['state'], np.stack(seen))

    space = RobotSpace(contract)
    seconds = (arrays['stamps'] - START_NS) / 1e9
    np.testing.assert_allclose(arrays['state'], space.state(np.stack([joints_at(s) for s in seconds])), atol=1e-9)
    told = space.actions(np.stack([joints_at(s + 0.05) for s in seconds]))
    np.testing.assert_allclose(arrays['actions'], told, atol=1e-9)


def test_recorded_commands_are_poses_to_a_replay(contract: Contract) -> None:
    recorded, outputs = Recorded(contract), {output.topic: output for output in contract.robot.outputs}
    for now_ns, topic, message in messages(contract):
        if topic in outputs:
            recorded.add(outputs[topic], message, now_ns)
    assert recorded.columns == list(contract.action_names)
    at = recorded.at(np.array([START_NS + 500 * MS]))[0]
    np.testing.assert_allclose(at, RobotSpace(contract).actions(joints_at(0.55)), atol=1e-9)

    half = Recorded(contract)
    for now_ns, topic, message in messages(contract):
        if topic in outputs and 'left' in topic:
            half.add(outputs[topic], message, now_ns)
    assert half.columns == list(contract.action_names[:5])
    assert np.isnan(half.at(np.array([START_NS + 500 * MS]))[0, 5:]).all()


def test_without_commands_the_next_pose_is_the_action(contract: Contract, tmp_path: Path) -> None:
    with BagWriter(tmp_path / 'bag', custom={'task': 'x'}) as writer:
        for now_ns, topic, message in messages(contract):
            if 'controller' not in topic:
                message_builders.put(writer, topic, now_ns, message)
    index = index_bags(tmp_path / 'bag', contract, tmp_path / 'index', IndexOptions(actions='state'))
    [(entry, about)] = index.episodes
    arrays = np.load(entry.folder / about.file)
    np.testing.assert_array_equal(arrays['actions'][:-1], arrays['state'][1:])
