"""A bag through the node's code: what is compared, what is refused, and that the same bag gives the same chunks."""

from __future__ import annotations

import json

import numpy as np
import pytest

rclpy_serialization = pytest.importorskip('rclpy.serialization')

from geometry_msgs.msg import TwistStamped  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image, JointState  # noqa: E402
from std_msgs.msg import Float64MultiArray  # noqa: E402
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from ki_bags.writer import BagWriter  # noqa: E402
from ki_policy_node.cycle.continuation import Timing  # noqa: E402
from ki_policy_node.errors import NodeError  # noqa: E402
from ki_policy_node.policy.backends import Commissioning, CommissioningPolicy  # noqa: E402
from ki_policy_node.replay import replay_report  # noqa: E402
from ki_policy_node.replay.comparison import guesses, truth  # noqa: E402
from ki_policy_node.replay.replay import ReplayOptions, replay  # noqa: E402
from ki_robot.contract.contract import Contract  # noqa: E402
from ki_robot.messages.arrays import (  # noqa: E402
    fill_compressed,
    fill_image,
    fill_joint_state,
    fill_multi_array,
    fill_trajectory,
    fill_twist,
    set_time,
)

NS = 10**9
BEGIN = 1_700_000_000 * NS
TYPES = {
    'scene/image_raw/compressed': CompressedImage,
    'wrist/image_raw': Image,
    'joint_states': JointState,
    'arm_controller/joint_trajectory': JointTrajectory,
    'hand_controller/commands': Float64MultiArray,
    'base_controller/cmd_vel': TwistStamped,
}


def position(time_ns: int) -> float:
    """All joints move alike: 0.3 rad/s."""
    return 0.3 * (time_ns - BEGIN) / NS


def write_bag(folder, seconds=3.0, namespace='/robot1', skip=(), gap=(0, 0), spoil=None):
    """Cameras at 20 Hz, joints at 100 Hz, commands at 20 Hz; the command is where the joints will be 0.1 s later."""
    image = np.zeros((48, 64, 3), np.uint8)
    with BagWriter(folder) as bag:
        for topic, kind in TYPES.items():
            if topic not in skip:
                bag.add_topic(f'{namespace}/{topic}', f'{kind.__module__.split(".")[0]}/msg/{kind.__name__}')

        def put(topic, message, time_ns):
            if topic not in skip:
                bag.write(f'{namespace}/{topic}', time_ns, rclpy_serialization.serialize_message(message))

        for tick in range(round(seconds * 100)):
            now = BEGIN + tick * NS // 100
            values = [position(now)] * 3
            joints = fill_joint_state(JointState(), ['gripper', 'joint2', 'joint1'], values, now)
            put('joint_states', spoil(joints, tick) if spoil else joints, now)
            if tick % 5 == 0:
                image[:, tick % 64] = tick % 256
                if not gap[0] <= tick < gap[1]:
                    put('scene/image_raw/compressed', fill_compressed(CompressedImage(), image, now), now + 2_000_000)
                put('wrist/image_raw', fill_image(Image(), image, now), now + 3_000_000)
                ahead = position(now + NS // 10)
                point = [[ahead, ahead]]
                arm = fill_trajectory(JointTrajectory(), JointTrajectoryPoint, ['joint2', 'joint1'], [NS // 20], point)
                put('arm_controller/joint_trajectory', arm, now + 4_000_000)
                put('hand_controller/commands', fill_multi_array(Float64MultiArray(), [ahead]), now + 4_000_000)
                twist = TwistStamped()
                set_time(twist.header.stamp, now)
                fill_twist(twist.twist, ['base/linear/x/velocity'], [0.2])
                put('base_controller/cmd_vel', twist, now + 4_000_000)
    return folder


@pytest.fixture
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


def run(path, contract, **options):
    policy = CommissioningPolicy(contract, Commissioning())
    timing = Timing('latest', execute_steps=10)
    return replay(path, contract, policy, ReplayOptions(timing, **options))


def test_every_chunk_is_compared_with_what_was_commanded(contract, tmp_path):
    found = run(write_bag(tmp_path / 'bag'), contract)
    assert 5 <= len(found.chunks) <= 7, 'one chunk every 10 steps of 50 ms'
    result = replay_report.summary(found)['result']
    # The command is 0.1 s ahead of the measured pose at 0.3 rad/s; the policy keeps the pose it began with.
    joint = contract.action_names.index('joint1/position')
    away = np.abs(guesses(found)['hold the pose'] - truth(found))[1:, 0, joint]
    assert away == pytest.approx(0.03, abs=0.02)
    by_column = result['error_by_column']
    assert by_column['policy']['base/linear/x/velocity'] == pytest.approx(0.2)
    assert by_column['linear extrapolation']['joint1/position'] < by_column['hold the pose']['joint1/position']
    assert by_column['hold the pose']['joint1/position'] < by_column['policy']['joint1/position']
    assert len(result['error_by_step']['policy']) == 50
    assert result['ages_ms']['scene']['max'] < 60.0
    assert result['received'] == {'scene': 60, 'wrist': 60, 'joint_states': 300}


def test_the_same_bag_gives_the_same_result(contract, tmp_path):
    bag = write_bag(tmp_path / 'bag')
    one, other = (replay_report.summary(run(bag, contract))['result'] for _ in range(2))
    assert json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def test_a_gap_in_a_camera_is_a_hold_and_no_chunk_rests_on_an_old_image(contract, tmp_path):
    found = run(write_bag(tmp_path / 'bag', gap=(100, 200)), contract)
    assert found.holds['stale'] > 0
    assert all(made.ages_ns['scene'] <= 0.5 * NS for made in found.chunks)


def test_refused_messages_are_counted_by_reason(contract, tmp_path):
    def poison(message, tick):
        if tick % 10 == 3:
            message.position[0] = float('nan')
        return message

    result = replay_report.summary(run(write_bag(tmp_path / 'bag', spoil=poison), contract))['result']
    assert result['rejected'] == {'joint_states': {'non_finite': 30}}


def test_a_missing_topic_is_named_with_its_stream_and_the_fix(contract, tmp_path):
    bag = write_bag(tmp_path / 'bag', skip=('joint_states',))
    with pytest.raises(NodeError, match=r'no topic joint_states of type .*JointState.*--remap joint_states:=NAME'):
        run(bag, contract)


def test_a_remapped_topic_is_found(contract, tmp_path):
    plain = contract.to_dict()
    plain['state_streams'][0]['topic'] = 'joints'
    other = Contract.parse(plain)
    found = run(write_bag(tmp_path / 'bag'), other, remap={'joints': 'joint_states'})
    assert len(found.chunks) > 3


def test_a_bag_without_commands_is_replayed_without_a_comparison(contract, tmp_path):
    skip = ('arm_controller/joint_trajectory', 'hand_controller/commands', 'base_controller/cmd_vel')
    found = run(write_bag(tmp_path / 'bag', skip=skip), contract)
    numbers = replay_report.summary(found)
    assert numbers['result']['error'] == {}
    assert 'no recorded commands' in replay_report.failure(numbers, 1.0)


def test_the_report_is_one_file_with_its_pictures_and_the_exit_status_tells(rigs, tmp_path, without_plotly):
    import yaml

    robot = tmp_path / 'small.yaml'
    robot.write_text(yaml.safe_dump(rigs.small_robot()))
    write_bag(tmp_path / 'bag', seconds=2.0)
    from ki.commands.replay import app

    words = [str(tmp_path / 'bag'), '--backend', 'commissioning', '--robot', str(robot), '--out', str(tmp_path / 'out')]
    passed = CliRunner().invoke(app, [*words, '--fail-above', '10'])
    assert passed.exit_code == 0, passed.output
    failed = CliRunner().invoke(app, [*words, '--fail-above', '0.001'])
    assert failed.exit_code == 1
    assert 'above 0.001' in failed.output
    page = without_plotly((tmp_path / 'out' / 'replay.html').read_text())
    assert page.count('data:image/png;base64,') == 4
    assert page.count('Plotly.newPlot(') == 2
    assert 'linear extrapolation' in page
    assert 'http' not in page
    assert page.index('Did it work?') < page.index('How sure is that?') < page.index('What limited it?')
    assert page.index('What limited it?') < page.index('How far from what was commanded')
    numbers = json.loads((tmp_path / 'out' / 'replay.json').read_text())
    assert numbers['result']['chunks'] >= 2


def test_live_messages_and_recorded_ones_give_the_same_chunks(contract, tmp_path):
    from ki_bags.reader import open_bag
    from ki_policy_node.policy.backends import Wanted, open_policy
    from ki_policy_node.replay.replay import ReplayRun
    from ki_vla.policy.untrained import write_untrained

    write_untrained(tmp_path / 'bundle', contract)
    bag = write_bag(tmp_path / 'bag', seconds=1.5)
    timing = Timing('guided', execute_steps=10)
    options = ReplayOptions(timing, instruction='wave')
    chunks = []
    for live in (False, True):
        policy = open_policy(Wanted('torch', str(tmp_path / 'bundle'), allow_untrained=True), contract, timing)
        run = ReplayRun(open_bag(bag), contract, policy, options)
        for message in open_bag(bag).messages(run.wanted):
            kind = TYPES[message.topic.removeprefix('/robot1/')]
            # What a subscription hands to the node, against what the bag's reader makes of the same bytes.
            decoded = rclpy_serialization.deserialize_message(message.data, kind) if live else run._bag.decode(message)
            run.take(message.topic, decoded, message.log_ns)
        chunks.append([made.planned.chunk for made in run.finish().chunks])
    assert len(chunks[0]) == len(chunks[1]) >= 3
    for recorded, live in zip(*chunks, strict=True):
        assert (recorded.start_ns, recorded.frozen_prefix) == (live.start_ns, live.frozen_prefix)
        assert np.array_equal(recorded.data_HN, live.data_HN)


def test_a_replay_is_written_for_the_rerun_viewer(contract, tmp_path):
    pytest.importorskip('rerun', reason='rerun-sdk is not installed: the export for Rerun was NOT checked here')
    import subprocess
    import sys

    from ki_policy_node.replay.rerun_export import write_rerun

    bag = write_bag(tmp_path / 'bag', seconds=1.5)
    file = write_rerun(run(bag, contract), bag, tmp_path / 'out' / 'replay.rrd')
    assert file.read_bytes()[:3] == b'RRF'
    told = subprocess.run(
        [sys.executable, '-m', 'rerun', 'rrd', 'print', '-v', str(file)], capture_output=True, text=True
    )
    for path in (
        'cameras/scene',
        'cameras/wrist',
        'measured/joint1/position',
        'commanded/joint1/position',
        'chunk/joint1',
    ):
        assert f'/{path}' in told.stdout, told.stdout[-2000:] + told.stderr[-500:]
