"""The simulated robot as a process, over DDS: what it sends, what it obeys, what it refuses, and how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_policy_node.common.service_calls import ServiceCalls
from ki_sim.record.record import jpeg
from ki_sim.world.robot import CAMERAS, POSITION_JOINTS
from ki_sim.world.world import World

pytestmark = pytest.mark.ros
ROOT = Path(__file__).resolve().parents[3]
ARM = POSITION_JOINTS[:6]


class Bench:
    """One simulator process, and a node that hears all it says."""

    def __init__(self, folder: Path, domain: int, **parameters: Any) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from geometry_msgs.msg import TwistStamped
        from ki_msgs.msg import Instruction
        from nav_msgs.msg import Odometry
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import CompressedImage, JointState
        from std_msgs.msg import Bool, Float64MultiArray
        from trajectory_msgs.msg import JointTrajectory

        from ki_policy_node.common.process import make_executor

        self.log = folder / 'sim_robot.log'
        given = [
            f'{name}:={str(value).lower() if isinstance(value, bool) else value}' for name, value in parameters.items()
        ]
        arguments = [part for each in given for part in ('-p', each)]
        with self.log.open('w') as stream:
            self.process = subprocess.Popen(
                [sys.executable, '-m', 'ki_sim.node.sim_node', '--ros-args', *arguments],
                stdout=stream,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                env={**os.environ, 'ROS_DOMAIN_ID': str(domain)},
            )
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node('bench', context=self.context)
        self.calls = ServiceCalls(self.node, lambda: time.sleep(0.01))
        self.heard: dict[str, list[tuple[float, Any]]] = {}
        deep, latched = QoSProfile(depth=200), QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        kinds = {
            'joint_states': (JointState, deep),
            'odom': (Odometry, deep),
            '/clock': (Clock, deep),
            '/diagnostics': (DiagnosticArray, deep),
            'instruction': (Instruction, latched),
        }
        kinds |= {f'{camera}_camera/image_raw/compressed': (CompressedImage, deep) for camera in CAMERAS}
        for topic, (kind, qos) in kinds.items():
            kept = self.heard[topic] = []
            self.node.create_subscription(kind, topic, lambda m, kept=kept: kept.append((time.monotonic(), m)), qos)
        commands = {
            'left_arm_controller/joint_trajectory': JointTrajectory,
            'left_gripper_controller/commands': Float64MultiArray,
            'base_controller/cmd_vel': TwistStamped,
        }
        self.commands = {topic: self.node.create_publisher(kind, topic, 10) for topic, kind in commands.items()}
        self.estop = self.node.create_publisher(Bool, 'estop', latched)
        self._executor = make_executor(self.context)
        self._executor.add_node(self.node)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        self.until('the simulator speaks', lambda: self.newest('joint_states'), 30.0)
        heard_by = [publisher.get_subscription_count for publisher in self.commands.values()]
        self.until('the controllers listen', lambda: all(count() for count in heard_by))

    def _spin(self) -> None:
        while not self._ending.is_set():
            self._executor.spin_once(timeout_sec=0.02)

    def close(self) -> int:
        """Ends it with SIGINT; its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        status = self.process.wait(10.0)
        self._ending.set()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()
        return status

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 10.0) -> Any:
        end = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < end, f'not within {seconds} s: {what}\n{self.log.read_text()}'
            time.sleep(0.005)
        return found

    def newest(self, topic: str) -> Any:
        return self.heard[topic][-1][1] if self.heard[topic] else None

    def joint(self, name: str) -> float:
        return self.joint_of(self.newest('joint_states'), name)

    @staticmethod
    def joint_of(message: Any, name: str) -> float:
        return float(message.position[list(message.name).index(name)])

    def last(self, count: int) -> list[Any]:
        return [message for _, message in self.heard['joint_states'][-count:]]

    def trajectory(self, *points: tuple[float, dict[str, float]], names: tuple[str, ...] = ARM, stamp: int = 0) -> Any:
        """Points (seconds, changes to where the left arm is) as a message."""
        from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

        from ki_robot.messages.arrays import fill_trajectory

        here = {name: self.joint(name) for name in ARM}
        rows = [[{**here, **change}.get(name, 0.0) for name in names] for _, change in points]
        times = [round(seconds * 1e9) for seconds, _ in points]
        return fill_trajectory(JointTrajectory(), JointTrajectoryPoint, names, times, rows, stamp=stamp)

    def send(self, topic: str, message: Any) -> None:
        self.commands[topic].publish(message)

    def move(self, *points: tuple[float, dict[str, float]]) -> None:
        self.send('left_arm_controller/joint_trajectory', self.trajectory(*points))

    def drive(self, x: float) -> None:
        from geometry_msgs.msg import TwistStamped

        message = TwistStamped()
        message.twist.linear.x = x
        self.send('base_controller/cmd_vel', message)

    def call(self, kind: Any, service: str, **fields: Any) -> Any:
        return self.calls.call(kind, service, kind.Request(**fields), 30.0)

    def set(self, **values: Any) -> Any:
        from rcl_interfaces.srv import SetParametersAtomically
        from rclpy.parameter import Parameter

        parameters = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
        return self.call(SetParametersAtomically, 'sim_robot/set_parameters_atomically', parameters=parameters).result

    def reset(self, **values: Any) -> Any:
        from std_srvs.srv import Trigger

        result = self.set(**values)
        assert result.successful, result.reason
        return self.call(Trigger, 'sim_robot/reset')

    def said(self) -> dict[str, Any]:
        """What `~/success` says of the episode."""
        from std_srvs.srv import Trigger

        return json.loads(self.call(Trigger, 'sim_robot/success').message)

    def diagnosis(self) -> dict[str, str]:
        lines = self.newest('/diagnostics')
        return {value.key: value.value for value in lines.status[0].values} if lines else {}


@pytest.fixture(scope='module')
def bench(tmp_path_factory: pytest.TempPathFactory, shared_domain: int) -> Iterator[Bench]:
    """A simulator in real time that the tests of this file share; it must end cleanly."""
    pytest.importorskip('rclpy')
    made = Bench(tmp_path_factory.mktemp('bench'), shared_domain, task='stack', seed=3)
    yield made
    assert made.close() == 0
    assert 'Traceback' not in made.log.read_text()


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest) -> None:
    """Every test begins with a new scene."""
    if 'bench' in request.fixturenames:
        request.getfixturevalue('bench').reset(task='stack', seed=3, goal=-1, split='train')


# First what brings a simulator of its own: the one that the others share runs from its first test to the last.


def test_free_running_is_faster_than_the_wall_clock_and_in_step_with_its_own(tmp_path: Path, ros_domain: int) -> None:
    from ki_robot.messages.arrays import stamp_ns, time_ns

    bench = Bench(tmp_path, ros_domain, clock=True, speed=0.0, camera_rate=2.0)
    try:
        bench.until('a clock', lambda: bench.newest('/clock'))
        clock = time_ns(bench.newest('/clock').clock)

        def flies() -> bool:
            wall, start = time.monotonic(), time_ns(bench.newest('/clock').clock)
            time.sleep(1.0)
            return (time_ns(bench.newest('/clock').clock) - start) * 1e-9 > 1.3 * (time.monotonic() - wall)

        bench.until('time flies', flies, 30.0)  # at once, unless other work has the cores
        stamps = np.array([stamp_ns(message.header) for _, message in list(bench.heard['joint_states'])])
        assert ((stamps - clock) % 10_000_000 == 0).all()
        assert (np.diff(stamps) > 0).all()
        assert abs(int(stamps[-1]) - time_ns(bench.newest('/clock').clock)) < 500_000_000
    finally:
        assert bench.close() == 0


def started(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, '-m', 'ki_sim.node.sim_node', '--ros-args', *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=30, cwd=ROOT, env={**os.environ, **environment}
    )


@pytest.mark.parametrize(
    ('arguments', 'environment', 'words'),
    [
        (('-p', 'task:=juggle'), {}, "task is 'juggle'; write one of demo"),
        (('-p', 'robot:=arm_single'), {}, 'robot arm_single cannot be simulated: there is no camera'),
        ((), {'MUJOCO_GL': 'off'}, 'switches rendering off, and this needs cameras: unset it'),
    ],
)
def test_a_start_that_cannot_be_ends_with_one_sentence(
    arguments: tuple[str, ...], environment: dict[str, str], words: str
) -> None:
    done = started(*arguments, **environment)
    assert done.returncode == 2
    assert words in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('episodes', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_live_recording_holds_what_an_offline_one_does(tmp_path: Path, ros_domain: int, episodes: int) -> None:
    from ki_bags.reader import open_bag
    from ki_robot.contract.contract import load_contract
    from ki_sim.record.record import record_episode
    from ki_sim.record.sim_bags import ROBOT, write_bag

    command = [sys.executable, '-m', 'ki.main', 'sim', 'record', '--task', 'demo', '--episodes', str(episodes), '--out']
    done = subprocess.run([*command, tmp_path / 'live'], capture_output=True, text=True, timeout=150, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for seed in range(episodes):
        offline = write_bag(record_episode('demo', seed), tmp_path / f'offline-{seed}')
        mine, theirs = open_bag(tmp_path / 'live' / f'demo-{seed:06d}'), open_bag(offline)
        live, direct = by_topic(mine), by_topic(theirs)
        assert {t: mine.topics[t].type for t in live} == {t: theirs.topics[t].type for t in direct}
        for topic, messages in live.items():
            more = len(messages) - len(direct[topic])
            # The live one goes on for the step that follows the last command.
            assert 0 <= more <= (5 if topic in ('/joint_states', '/odom') else 1), topic
        for one, two in zip(live['/joint_states'], direct['/joint_states'], strict=False):
            assert list(one.name) == list(two.name)
            np.testing.assert_allclose(one.position, two.position, atol=1e-9)
        for topic in direct:
            if topic.endswith('/commands'):
                assert [list(m.data) for m in live[topic]] == [list(m.data) for m in direct[topic]]
            if topic.endswith('/joint_trajectory'):
                assert [waypoints(m) for m in live[topic]] == [waypoints(m) for m in direct[topic]]
        for camera in load_contract(ROBOT).cameras:
            pairs = zip(live['/' + camera.topic], direct['/' + camera.topic], strict=False)
            assert all((one.data == two.data).all() for one, two in pairs), camera.name
        for topic in ('/instruction', '/subtask'):
            assert [(m.id, m.text) for m in live[topic]] == [(m.id, m.text) for m in direct[topic]]
        for one, two in zip(live['/episode'], direct['/episode'], strict=True):
            assert (one.phase, one.task, one.outcome) == (two.phase, two.task, two.outcome)
        assert mine.custom == theirs.custom
        assert not list(mine.problems)
    again = subprocess.run([*command, tmp_path / 'live'], capture_output=True, text=True, timeout=150, cwd=ROOT)
    assert f'{episodes} were there' in again.stdout


def waypoints(message: Any) -> list[tuple[int, list[float]]]:
    from ki_robot.messages.arrays import time_ns

    return [(time_ns(point.time_from_start), list(point.positions)) for point in message.points]


def by_topic(bag: Any) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for message in bag.messages():
        found.setdefault(message.topic, []).append(bag.decode(message))
    return found


@pytest.mark.slow  # an episode of `ki demo`, which comes with the quick tests, goes the same way
def test_a_plan_through_the_executor_does_the_task(tmp_path: Path, ros_domain: int) -> None:
    command = [sys.executable, '-m', 'ki.main', 'eval', 'sim', '--through-node', '--plan', '--seeds', '1', '--out']
    done = subprocess.run([*command, tmp_path], capture_output=True, text=True, timeout=150, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / 'demo-through-node.json').read_text())
    (outcome,) = report['outcomes']
    assert outcome['success'], outcome
    assert outcome['followed']
    assert 2.0 < outcome['time_s'] < 15.0
    assert report['summary']['success']['low'] == pytest.approx(0.2065, abs=1e-3)
    assert report['settings']['through'] == 'policy_node and chunk_executor'
    with contextlib.suppress(FileNotFoundError):
        assert 'Traceback' not in (tmp_path / 'nodes.log').read_text()


def test_joint_states_come_at_100_hz_with_every_joint_by_name(bench: Bench) -> None:
    first = len(bench.heard['joint_states'])
    bench.until('150 of them', lambda: len(bench.heard['joint_states']) >= first + 150)
    messages = [message for _, message in bench.heard['joint_states'][first:]]
    assert list(messages[0].name) == list(POSITION_JOINTS)
    stamps = np.array([message.header.stamp.sec * 10**9 + message.header.stamp.nanosec for message in messages])
    assert (len(stamps) - 1) / (stamps[-1] - stamps[0]) * 1e9 == pytest.approx(100.0, rel=0.15)
    assert np.median(np.diff(stamps)) == pytest.approx(10_000_000, rel=0.02)
    assert (np.diff(stamps) > 0).all()
    assert abs(time.time_ns() - int(stamps[-1])) < 1_000_000_000
    assert len(bench.heard['odom']) == pytest.approx(len(bench.heard['joint_states']), abs=3)


def test_cameras_share_the_stamp_of_a_joint_state_and_have_the_size_asked_for(bench: Bench) -> None:
    import cv2

    from ki_robot.messages.arrays import stamp_ns

    topics = [f'{camera}_camera/image_raw/compressed' for camera in CAMERAS]
    before = len(bench.heard[topics[0]])
    bench.until('pictures come', lambda: len(bench.heard[topics[0]]) > before + 5)
    stamps = {stamp_ns(message.header) for _, message in list(bench.heard[topics[0]])[before:]}
    assert len(stamps) >= 4
    for topic in (*topics[1:], 'joint_states'):
        bench.until(topic, lambda t=topic: stamps <= {stamp_ns(m.header) for _, m in list(bench.heard[t])})
    message = bench.newest(topics[0])
    assert message.format == 'jpeg'
    assert cv2.imdecode(np.frombuffer(message.data, np.uint8), cv2.IMREAD_COLOR).shape == (96, 96, 3)


def test_a_trajectory_moves_the_arm_and_its_end_is_held(bench: Bench) -> None:
    start = bench.joint('left_joint1')
    bench.move((0.5, {'left_joint1': start - 0.3}))
    bench.until('the arm arrives', lambda: abs(bench.joint('left_joint1') - (start - 0.3)) < 0.01)
    time.sleep(0.5)
    assert bench.joint('left_joint1') == pytest.approx(start - 0.3, abs=0.01)
    assert bench.joint('left_joint2') == pytest.approx(-1.5532, abs=0.02)


def test_a_new_trajectory_replaces_the_one_before(bench: Bench) -> None:
    start = bench.joint('left_joint1')
    bench.move((3.0, {'left_joint1': start - 1.5}))
    bench.until('the arm is on its way', lambda: bench.joint('left_joint1') < start - 0.1)
    bench.move((0.4, {'left_joint1': start}))
    bench.until('the arm is back', lambda: abs(bench.joint('left_joint1') - start) < 0.01)
    time.sleep(0.3)
    assert bench.joint('left_joint1') == pytest.approx(start, abs=0.01)


def test_a_base_stops_when_its_commands_stop(bench: Bench) -> None:
    def moves() -> bool:
        bench.drive(0.2)
        time.sleep(0.05)
        return abs(bench.newest('odom').twist.twist.linear.x - 0.2) < 0.03

    bench.until('the base moves', moves)
    bench.until('the base stands', lambda: abs(bench.newest('odom').twist.twist.linear.x) < 0.01, 2.0)


def test_commands_that_make_no_sense_are_refused_by_name_logged_once_and_counted(bench: Bench) -> None:
    from std_msgs.msg import Float64MultiArray

    start, said = bench.joint('left_joint1'), bench.said()
    arm, gripper = 'left_arm_controller/joint_trajectory', 'left_gripper_controller/commands'
    for _ in range(5):
        bench.move((0.3, {'left_joint1': float('nan')}))
        bench.move((0.3, {'left_joint1': 9.0}))
        bench.send(arm, bench.trajectory((0.3, {}), names=('left_joint1', 'elbow')))
        bench.send(arm, bench.trajectory((0.3, {'left_joint1': 0.0}), stamp=5 * 10**9))
        bench.send(gripper, Float64MultiArray(data=[0.05, 0.05]))
        bench.send(gripper, Float64MultiArray(data=[float('inf')]))
        bench.drive(float('nan'))
        time.sleep(0.05)
    bench.until('all are counted', lambda: bench.said()['refused'] == said['refused'] + 35)
    assert bench.joint('left_joint1') == pytest.approx(start, abs=0.01)
    text = bench.log.read_text()
    for words in (
        'not finite in the positions of point 0 (left_joint1)',
        'left_joint1 = 9.0000, outside its limits',
        "got joints ['left_joint1', 'elbow']",
        'in the past',
        'send the opening alone',
        'left_gripper_controller got a number that is not finite',
        'base_controller got a twist that is not finite',
    ):
        assert text.count(words) == 1, words
    bench.until('the diagnosis counts', lambda: '5' in [v for k, v in bench.diagnosis().items() if 'elbow' in k])
    bench.move((0.3, {'left_joint1': start - 0.1}))
    bench.until('a good one is obeyed', lambda: abs(bench.joint('left_joint1') - (start - 0.1)) < 0.01)


def test_two_publishers_on_a_command_topic_are_refused_by_name(bench: Bench) -> None:
    import rclpy
    from std_msgs.msg import Float64MultiArray

    topic = 'left_gripper_controller/commands'
    stranger = rclpy.create_node('stranger', context=bench.context)
    second = stranger.create_publisher(Float64MultiArray, topic, 10)
    bench.until('both are seen', lambda: bench.node.count_publishers(topic) == 2)

    def refused() -> bool:
        bench.send(topic, Float64MultiArray(data=[0.0]))
        second.publish(Float64MultiArray(data=[0.0]))
        time.sleep(0.02)
        return '/bench and /stranger command it at once' in bench.log.read_text()

    bench.until('it is refused', refused)
    bench.until('the diagnosis says so', lambda: 'two publishers' in bench.newest('/diagnostics').status[0].message)
    stranger.destroy_node()

    def obeyed() -> bool:
        bench.send(topic, Float64MultiArray(data=[0.02]))
        time.sleep(0.05)
        return abs(bench.joint('left_gripper') - 0.02) < 0.005

    bench.until('the one that is left is obeyed', obeyed)
    assert bench.log.read_text().count('/bench and /stranger') == 1


def test_the_emergency_stop_freezes_arms_and_base(bench: Bench) -> None:
    from std_msgs.msg import Bool

    start = bench.joint('left_joint1')
    bench.move((3.0, {'left_joint1': start - 1.5}))
    bench.drive(0.3)
    bench.until('the arm is on its way', lambda: bench.joint('left_joint1') < start - 0.1)
    bench.estop.publish(Bool(data=True))
    bench.until('the stop is heard', lambda: 'emergency stop is pressed' in bench.log.read_text())
    bench.until('the arm stands', lambda: np.ptp([bench.joint_of(m, 'left_joint1') for m in bench.last(20)]) < 1e-3)
    stopped = bench.joint('left_joint1')
    bench.move((0.3, {'left_joint1': start}))
    bench.drive(0.3)
    time.sleep(0.4)
    assert bench.joint('left_joint1') == pytest.approx(stopped, abs=0.005)
    assert bench.newest('odom').twist.twist.linear.x == pytest.approx(0.0, abs=0.01)
    assert 'release it before commanding' in bench.log.read_text()
    bench.estop.publish(Bool(data=False))
    bench.until('the release is heard', lambda: 'emergency stop is released' in bench.log.read_text())
    bench.move((0.4, {'left_joint1': start}))
    bench.until('it moves again', lambda: abs(bench.joint('left_joint1') - start) < 0.01)


def test_a_seed_gives_the_same_joint_states_and_first_pictures(bench: Bench) -> None:
    with World('put_in_bin', 11) as world:
        expected = {camera: jpeg(world.image(camera), 92) for camera in CAMERAS}
        rest, words = [world.joint_states()[name][0] for name in POSITION_JOINTS], world.instruction

    def seen(topic: str, since: int) -> list[Any]:
        return [message for _, message in bench.heard[topic][since:]]

    for _ in range(2):
        bench.reset(seed=12)
        first = {topic: len(messages) for topic, messages in bench.heard.items()}
        answer = bench.reset(task='put_in_bin', seed=11)
        assert answer.message == words

        for camera, picture in expected.items():
            topic = f'{camera}_camera/image_raw/compressed'
            bench.until(topic, lambda t=topic, p=picture, n=first[topic]: any(bytes(m.data) == p for m in seen(t, n)))
        states = seen('joint_states', first['joint_states'])
        assert any(list(message.position) == rest for message in states)
        bench.until('it is said', lambda: bench.newest('instruction').text == words)
        assert bench.newest('instruction').id == 'put_in_bin-11'


def test_what_cannot_be_had_is_refused_with_a_sentence(bench: Bench) -> None:
    from std_srvs.srv import SetBool

    assert "task is 'juggle'; write one of demo" in bench.set(task='juggle').reason
    assert 'Parameter seed out of range. Min: 0' in bench.set(seed=-1).reason
    assert bench.set(camera_rate=5.0).successful is False
    answer = bench.call(SetBool, 'sim_robot/operate', data=True)
    assert not answer.success
    assert 'nobody is there to drive' in answer.message
    assert bench.said()['task'] == 'stack'


def test_real_time_is_held_and_reported(bench: Bench) -> None:
    bench.until('it is reported', lambda: 'real-time factor' in bench.diagnosis())
    held = 0.8  # at the next report, unless other work has the cores
    bench.until('it is held', lambda: float(bench.diagnosis()['real-time factor']) > held, 30.0)
