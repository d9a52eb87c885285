"""The observation buffer: what arrives, what is refused and counted, and every reason to hold."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from ki_robot.contract.contract import Contract, load_contract
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.arrays import fill_compressed, fill_image, fill_joint_state, fill_twist
from ki_robot.observation.buffer import BufferSettings, ObservationBuffer
from ki_robot.observation.decode_threads import DecodeThreads
from ki_robot.observation.frozen_camera import FrozenWatch, NewestState, spread_checksum
from ki_robot.observation.observation import (
    InputFault,
    NotReady,
    Observation,
    StreamState,
)

MS = 1_000_000
T0 = 1_700_000_000_000_000_000
CAMERAS = ('head', 'left_wrist', 'right_wrist')
ARMS = np.arange(14) % 7 < 6  # and not the grippers


@pytest.fixture(scope='module')
def contract() -> Contract:
    return load_contract('bimanual_mobile')


class Robot:
    """Sends messages of one library into a buffer, all streams or some."""

    def __init__(self, make: Any, buffer: ObservationBuffer) -> None:
        self.make, self.buffer = make, buffer
        self.joints = [name.rpartition('/')[0] for name in buffer.contract.state_names[:14]]
        self.pose = np.linspace(0.01, 0.10, 14)

    def camera(self, name: str, stamp: int, shade: int = 0, receive: int | None = None) -> bool:
        image = np.full((12, 16, 3), (stamp // MS + shade) % 256, np.uint8)
        msg = fill_compressed(self.make('sensor_msgs/CompressedImage'), image, stamp, name, 'png')
        return self.buffer.push(name, msg, stamp if receive is None else receive)

    def joint_states(self, stamp: int, receive: int | None = None, order: Any = slice(None), pose: Any = None) -> bool:
        pose = self.pose if pose is None else pose
        names = list(np.array(self.joints)[order])
        msg = fill_joint_state(self.make('sensor_msgs/JointState'), names, np.asarray(pose)[order], stamp)
        return self.buffer.push('joint_states', msg, stamp if receive is None else receive)

    def odom(self, stamp: int) -> bool:
        msg = self.make('nav_msgs/Odometry')
        msg.header.stamp.sec, msg.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
        fill_twist(msg.twist.twist, self.buffer.contract.state_names[14:], [0.1, 0.2, 0.3])
        return self.buffer.push('odom', msg, stamp)

    def everything(self, stamp: int) -> None:
        for index, name in enumerate(CAMERAS):
            assert self.camera(name, stamp + index * MS)
        assert self.joint_states(stamp + 5 * MS)
        assert self.odom(stamp + 6 * MS)


@pytest.fixture
def robot(make: Any, contract: Contract) -> Robot:
    buffer = ObservationBuffer(contract)
    buffer.set_instruction('put the cup in the bowl', 'i1')
    return Robot(make, buffer)


def held(robot: Robot, now: int) -> NotReady:
    result = robot.buffer.sample(now)
    assert isinstance(result, NotReady)
    return result


def seen(robot: Robot, now: int) -> Observation:
    result = robot.buffer.sample(now)
    assert isinstance(result, Observation), str(result)
    return result


def test_a_full_set_of_streams_gives_one_observation(robot: Robot) -> None:
    robot.everything(T0)
    observation = seen(robot, T0 + 10 * MS)
    assert list(observation.images) == list(CAMERAS)
    assert observation.stamp_ns == T0
    assert observation.state_stamp_ns == T0 + 5 * MS
    assert observation.image_stamps_ns['right_wrist'] == T0 + 2 * MS
    np.testing.assert_array_equal(observation.state, [*robot.pose, 0.1, 0.2, 0.3])
    assert observation.images['head'].shape == (12, 16, 3)
    assert (observation.images['left_wrist'] == (T0 // MS + 1) % 256).all()
    assert (observation.instruction, observation.instruction_id, observation.epoch) == (
        'put the cup in the bowl',
        'i1',
        0,
    )


def test_the_order_of_joints_in_a_message_does_not_matter(robot: Robot) -> None:
    robot.everything(T0)
    first = seen(robot, T0 + 10 * MS).state
    assert robot.joint_states(T0 + 20 * MS, order=np.random.default_rng(0).permutation(14))
    np.testing.assert_array_equal(seen(robot, T0 + 30 * MS).state, first)


def test_images_are_decoded_when_sampled_and_once(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = cv2.imdecode
    monkeypatch.setattr(cv2, 'imdecode', lambda *given: decoded.append(1) or original(*given))
    robot.everything(T0)
    assert not decoded
    first = seen(robot, T0 + 10 * MS)
    again = seen(robot, T0 + 20 * MS)
    assert len(decoded) == 3
    assert again.images['head'] is first.images['head']


def test_frames_decoded_ahead_are_not_decoded_again(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded = []
    original = cv2.imdecode
    monkeypatch.setattr(cv2, 'imdecode', lambda *given: decoded.append(1) or original(*given))
    robot.everything(T0)
    robot.buffer.decode(('head', 'right_wrist'))
    assert len(decoded) == 2
    assert set(seen(robot, T0 + 10 * MS).images) == set(CAMERAS)
    assert len(decoded) == 3


def test_threads_decode_ahead_each_frame_once_and_never_one_that_was_overtaken(
    contract: Contract, make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded: list[str] = []
    gate, original = threading.Event(), cv2.imdecode

    def slow(*given: Any) -> Any:
        decoded.append(threading.current_thread().name)
        assert gate.wait(10.0)
        return original(*given)

    monkeypatch.setattr(cv2, 'imdecode', slow)
    threads = DecodeThreads()
    robot = Robot(make, ObservationBuffer(contract, BufferSettings(require_instruction=False), threads))
    robot.everything(T0)
    robot.buffer.decode(('head', 'right_wrist'))
    until(lambda: len(decoded) == 2)
    for k in range(2, 7):  # both threads are busy: of five more frames of one camera the last one waits
        assert robot.camera('left_wrist', T0 + k * MS)
        robot.buffer.decode(('left_wrist',))
    gate.set()
    images = seen(robot, T0 + 10 * MS).images
    assert set(images) == set(CAMERAS)
    assert len(decoded) == 3
    threads.close()
    assert decoded[0].startswith('decode')
    assert not [thread for thread in threading.enumerate() if thread.name.startswith('decode')]


def test_a_thread_outlives_work_that_fails() -> None:
    threads, done = DecodeThreads(count=1), threading.Event()
    threads.ask('one', lambda: 1 // 0)
    until(lambda: not threads._waiting)
    threads.ask('two', done.set)
    assert done.wait(10.0)
    threads.close()
    threads.ask('three', done.clear)
    assert done.is_set()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10.0
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_a_frame_that_does_not_decode_ahead_is_refused_by_the_sample(robot: Robot) -> None:
    robot.everything(T0)
    broken = fill_compressed(robot.make('sensor_msgs/CompressedImage'), np.zeros((9, 9, 3), np.uint8), T0 + 9 * MS)
    broken.data = broken.data[:150]
    assert robot.buffer.push('head', broken, T0 + 9 * MS)
    robot.buffer.decode(CAMERAS)
    assert held(robot, T0 + 10 * MS).hold is InputFault.INVALID


def test_the_state_alone_is_there_without_cameras_and_only_while_fresh(robot: Robot) -> None:
    assert robot.joint_states(T0)
    assert robot.buffer.state(T0) is None
    assert robot.odom(T0)
    state = robot.buffer.state(T0 + 10 * MS)
    np.testing.assert_allclose(state, [*robot.pose, 0.1, 0.2, 0.3])
    assert isinstance(robot.buffer.sample(T0 + 10 * MS), NotReady)
    assert robot.buffer.state(T0 + 1000 * MS) is None


def test_before_the_first_message_every_stream_is_named(robot: Robot) -> None:
    result = held(robot, T0)
    assert [problem.stream for problem in result.problems] == [*CAMERAS, 'joint_states', 'odom']
    assert {problem.hold for problem in result.problems} == {InputFault.NEVER_RECEIVED}
    assert 'head: nothing received on head_camera/image_raw/compressed.' in str(result)


def test_a_stream_that_stops_is_stale_and_named_with_its_age(robot: Robot) -> None:
    robot.everything(T0)
    later = T0 + 240 * MS
    for name in CAMERAS[1:]:
        robot.camera(name, later)
    robot.joint_states(later)
    robot.odom(later)
    result = held(robot, later + 11 * MS)
    assert [(p.stream, p.hold) for p in result.problems] == [('head', InputFault.STALE)]
    assert 'head: the newest message is 0.251 s old; max_age_s is 0.25.' in str(result)
    assert robot.camera('head', later + 12 * MS)
    seen(robot, later + 13 * MS)


def test_streams_that_were_seen_at_different_times_hold(robot: Robot) -> None:
    robot.everything(T0)
    robot.joint_states(T0 + 150 * MS)
    robot.odom(T0 + 150 * MS)
    result = held(robot, T0 + 151 * MS)
    assert result.hold is InputFault.UNSYNCHRONIZED
    assert 'head is 0.150 s behind' in str(result)


def test_without_an_instruction_the_robot_holds(robot: Robot) -> None:
    robot.everything(T0)
    robot.buffer.set_instruction('   ')
    assert held(robot, T0 + 10 * MS).hold is InputFault.NO_INSTRUCTION


def test_a_camera_that_is_not_required_may_be_missing(make: Any, contract: Contract) -> None:
    cameras = (contract.cameras[0].replace(required=False), *contract.cameras[1:])
    robot = Robot(make, ObservationBuffer(contract.replace(cameras=cameras), BufferSettings(require_instruction=False)))
    robot.camera('left_wrist', T0)
    robot.camera('right_wrist', T0)
    robot.joint_states(T0)
    robot.odom(T0)
    assert list(seen(robot, T0 + MS).images) == ['left_wrist', 'right_wrist']
    robot.camera('head', T0 + 2 * MS)
    assert list(seen(robot, T0 + 3 * MS).images) == list(CAMERAS)
    for name in CAMERAS[1:]:
        robot.camera(name, T0 + 280 * MS)
    robot.joint_states(T0 + 280 * MS)
    robot.odom(T0 + 280 * MS)
    assert list(seen(robot, T0 + 281 * MS).images) == ['left_wrist', 'right_wrist'], 'an old view is left out'


SKEW, INVALID = StreamState.CLOCK_SKEW, StreamState.INVALID
LATER = T0 + 9 * MS
REFUSED: dict[str, tuple[Any, Reason, StreamState]] = {
    'camera without a stamp': (lambda r: r.camera('head', 0, receive=LATER), Reason.ZERO_STAMP, SKEW),
    'camera in the future': (lambda r: r.camera('head', T0 + 90 * MS, receive=LATER), Reason.FUTURE_STAMP, SKEW),
    'camera backwards': (lambda r: r.camera('head', T0 - MS, receive=LATER), Reason.BACKWARD_STAMP, SKEW),
    'camera twice': (lambda r: r.camera('head', T0, receive=LATER), Reason.BACKWARD_STAMP, SKEW),
    'joint missing': (lambda r: r.joint_states(LATER, order=slice(0, 13)), Reason.MISSING_NAME, INVALID),
    'joint twice': (lambda r: r.joint_states(LATER, order=[*range(14), 3]), Reason.DUPLICATE_NAME, INVALID),
    'joint NaN': (lambda r: r.joint_states(LATER, pose=[np.nan] * 14), Reason.NON_FINITE, INVALID),
}


@pytest.mark.parametrize(('send', 'reason', 'state'), REFUSED.values(), ids=REFUSED)
def test_a_bad_message_is_refused_counted_and_reported(
    robot: Robot, send: Any, reason: Reason, state: StreamState
) -> None:
    robot.everything(T0)
    before = seen(robot, T0 + 8 * MS).state
    assert send(robot) is False
    reports = {report.name: report for report in robot.buffer.health(T0 + 10 * MS)}
    name = 'joint_states' if reason in (Reason.MISSING_NAME, Reason.DUPLICATE_NAME, Reason.NON_FINITE) else 'head'
    assert reports[name].rejected == {reason: 1}
    assert reports[name].received == 2
    assert reports[name].state is state
    assert reports[name].last_error.endswith('.')
    assert not reports['left_wrist'].rejected
    np.testing.assert_array_equal(seen(robot, T0 + 100 * MS).state, before)


def test_a_message_that_arrives_too_old_is_refused(robot: Robot) -> None:
    robot.everything(T0)
    assert not robot.camera('head', T0 + MS, receive=T0 + 260 * MS)
    report = robot.buffer.health(T0 + 260 * MS)[0]
    assert (report.state, report.rejected) == (StreamState.STALE, {Reason.STALE: 1})
    assert 'Later ones were refused: head: arrived 0.259 s old' in str(held(robot, T0 + 260 * MS))


def test_extra_joints_are_refused_unless_the_contract_allows_them(make: Any, contract: Contract) -> None:
    for rule, taken in (('refuse', False), ('allow', True)):
        streams = (contract.state_streams[0].replace(extra_joints=rule), contract.state_streams[1])
        robot = Robot(make, ObservationBuffer(contract.replace(state_streams=streams)))
        robot.joints, robot.pose = [*robot.joints, 'wheel'], np.append(robot.pose, 1.0)
        assert robot.joint_states(T0) is taken


def split(contract: Contract) -> Contract:
    """The same robot, whose arms have a driver each on one topic."""
    [joints, odom] = contract.state_streams
    parts = (joints.replace(name='left'), joints.replace(name='right'), odom)
    columns = tuple(
        column.replace(source='left' if column.name.startswith('left') else 'right')
        if column.source == 'joint_states'
        else column
        for column in contract.state
    )
    return contract.replace(state_streams=parts, state=columns)


def test_drivers_that_share_a_topic_are_heard_each_for_its_joints(make: Any, contract: Contract) -> None:
    buffer = ObservationBuffer(split(contract), BufferSettings(require_instruction=False))
    robot = Robot(make, buffer)
    for camera in CAMERAS:
        robot.camera(camera, T0)
    robot.odom(T0)
    for place, part in enumerate((slice(0, 7), slice(7, 14))):
        msg = fill_joint_state(make('sensor_msgs/JointState'), robot.joints[part], robot.pose[part], T0 + place)
        taken = [buffer.push(name, msg, T0 + place) for name in ('left', 'right')]
        assert taken == [place == 0, place == 1]
    observation = buffer.sample(T0 + MS)
    assert isinstance(observation, Observation)
    np.testing.assert_array_equal(observation.state[:14], robot.pose)
    buffer.push('left', msg, T0 + 2 * MS)
    reports = {each.name: each for each in buffer.health(T0 + 2 * MS)}
    assert reports['left'].state is StreamState.OK, 'what is meant for the other arm says nothing about this one'
    assert reports['left'].rejected == {Reason.OTHER_JOINTS: 2}


def test_joints_that_nobody_measures_are_named(make: Any, contract: Contract) -> None:
    buffer = ObservationBuffer(contract)
    msg = fill_joint_state(make('sensor_msgs/JointState'), ['UR1_joint1'], [0.1], T0)
    assert not buffer.push('joint_states', msg, T0)
    report = next(each for each in buffer.health(T0) if each.name == 'joint_states')
    assert report.state is StreamState.INVALID
    assert 'UR1_joint1' in report.last_error


def test_a_twin_with_prefixed_names_does_not_spoil_the_stream(make: Any, contract: Contract) -> None:
    buffer = ObservationBuffer(contract)
    robot = Robot(make, buffer)
    robot.joint_states(T0)
    twin = fill_joint_state(
        make('sensor_msgs/JointState'), [f'UR1_{joint}' for joint in robot.joints], robot.pose, T0 + 1000
    )
    assert not buffer.push('joint_states', twin, T0 + 1000)
    report = next(each for each in buffer.health(T0 + MS) if each.name == 'joint_states')
    assert (report.state, report.last_error) == (StreamState.OK, '')


def test_health_states_rate_and_age(robot: Robot) -> None:
    assert {report.state for report in robot.buffer.health(T0)} == {StreamState.NEVER_RECEIVED}
    for index in range(40):
        robot.joint_states(T0 + index * 50 * MS)
    report = next(r for r in robot.buffer.health(T0 + 1960 * MS) if r.name == 'joint_states')
    assert (report.state, report.rate_hz, report.age_ns, report.received) == (StreamState.OK, 20.0, 10 * MS, 40)
    report = next(r for r in robot.buffer.health(T0 + 3000 * MS) if r.name == 'joint_states')
    assert (report.state, report.rate_hz) == (StreamState.STALE, 0.0)


def test_a_frame_that_does_not_decode_is_refused_once_and_named(robot: Robot) -> None:
    robot.everything(T0)
    broken = fill_compressed(robot.make('sensor_msgs/CompressedImage'), np.zeros((9, 9, 3), np.uint8), T0 + 9 * MS)
    broken.data = broken.data[:150]
    assert robot.buffer.push('head', broken, T0 + 9 * MS), 'arrival does not decode'
    for _ in range(3):
        result = held(robot, T0 + 10 * MS)
        assert result.hold is InputFault.INVALID
        assert 'cut off' in str(result)
    report = robot.buffer.health(T0 + 10 * MS)[0]
    assert (report.state, report.rejected) == (StreamState.INVALID, {Reason.UNDECODABLE: 1})
    robot.camera('head', T0 + 11 * MS)
    seen(robot, T0 + 12 * MS)


def test_a_frame_of_another_size_than_the_contract_says_is_refused(make: Any, contract: Contract) -> None:
    cameras = (contract.cameras[0].replace(width=640, height=480), *contract.cameras[1:])
    robot = Robot(make, ObservationBuffer(contract.replace(cameras=cameras), BufferSettings(require_instruction=False)))
    robot.everything(T0)
    assert 'image is 16 x 12; the contract says 640 x 480' in str(held(robot, T0 + 7 * MS))


def test_a_clock_that_jumps_back_begins_a_new_epoch(robot: Robot) -> None:
    robot.everything(T0)
    earlier = T0 - 10_000 * MS
    assert robot.camera('head', earlier)
    result = held(robot, earlier + MS)
    assert {p.hold for p in result.problems} == {InputFault.CLOCK_JUMP}
    assert [p.stream for p in result.problems] == ['left_wrist', 'right_wrist', 'joint_states', 'odom']
    robot.everything(earlier + 2 * MS)
    assert seen(robot, earlier + 9 * MS).epoch == 1
    held(robot, earlier - 10_000 * MS)
    assert robot.buffer.epoch == 2, 'a sample in the past is a jump too'


def test_flush_forgets_everything(robot: Robot) -> None:
    robot.everything(T0)
    robot.buffer.flush()
    assert held(robot, T0 + 10 * MS).hold is InputFault.CLOCK_JUMP
    robot.everything(T0)
    assert seen(robot, T0 + 10 * MS).epoch == 1


def frozen_run(robot: Robot, moving: bool) -> Observation | NotReady:
    """Ten frames of the head camera that are all equal, with fresh stamps, while everything else is alive."""
    image = np.full((12, 16, 3), 9, np.uint8)
    for index in range(10):
        now = T0 + index * 33 * MS
        robot.pose = np.linspace(0.01, 0.10, 14) + (0.02 * index if moving else 0.0) * ARMS
        robot.joint_states(now + MS)
        robot.odom(now + MS)
        for name in CAMERAS[1:]:
            robot.camera(name, now + 2 * MS, shade=index)
        same = fill_compressed(robot.make('sensor_msgs/CompressedImage'), image, now + 3 * MS, 'head', 'png')
        assert robot.buffer.push('head', same, now + 3 * MS)
    return robot.buffer.sample(now + 4 * MS)


def test_a_camera_that_repeats_itself_while_the_robot_moves_is_frozen(robot: Robot) -> None:
    result = frozen_run(robot, moving=True)
    assert isinstance(result, NotReady)
    assert [(p.stream, p.hold) for p in result.problems] == [('head', InputFault.FROZEN)]
    assert 'head: 10 equal frames in a row while the robot moved.' in str(result)
    last = T0 + 9 * 33 * MS
    robot.camera('head', last + 5 * MS)
    seen(robot, last + 6 * MS)


def test_a_still_scene_in_front_of_a_still_robot_is_no_fault(robot: Robot) -> None:
    assert isinstance(frozen_run(robot, moving=False), Observation)


def test_frames_that_differ_between_the_slabs_of_the_checksum_are_not_frozen() -> None:
    first = np.zeros(900_000, np.uint8)
    second = first.copy()
    second[4096 + 10] = 1
    assert spread_checksum(first) == spread_checksum(second)
    watch, state = FrozenWatch(frames=5, motion=0.05), NewestState(3)
    for index in range(20):
        state.take(slice(3), np.full(3, 0.1 * index), index)
        watch.update(first if index % 2 else second, index, state)
    assert not watch.is_frozen


@pytest.mark.parametrize('late', [1, 3])
def test_a_state_that_comes_after_the_frame_of_its_time_is_no_motion_in_front_of_it(late: int) -> None:
    """A simulator's new scene: the robot is elsewhere in the first frame, and its state says so some frames later."""
    watch, state, frame = FrozenWatch(frames=5, motion=0.05), NewestState(3), np.full(100, 7, np.uint8)
    state.take(slice(3), np.full(3, 0.2), 99)
    for index in range(20):
        if index >= late:
            state.take(slice(3), np.full(3, 1.0), 100 + index)
        watch.update(frame, 100 + index, state)
    assert not watch.is_frozen, 'a still scene in front of a still robot'
    state.take(1, np.array(1.1), 130)
    watch.update(frame, 130, state)
    assert watch.is_frozen, 'and now it moves'


def test_an_image_above_the_cap_is_refused_on_arrival(make: Any, contract: Contract) -> None:
    buffer = ObservationBuffer(contract, BufferSettings(max_image_bytes=100))
    msg = fill_compressed(make('sensor_msgs/CompressedImage'), np.zeros((64, 64, 3), np.uint8), T0)
    assert not buffer.push('head', msg, T0)
    assert buffer.health(T0)[0].rejected == {Reason.TOO_LARGE: 1}


def test_a_driver_without_a_clock_is_dated_by_arrival(make: Any, contract: Contract) -> None:
    cameras = (contract.cameras[0].replace(stamp='receive'), *contract.cameras[1:])
    robot = Robot(make, ObservationBuffer(contract.replace(cameras=cameras), BufferSettings(require_instruction=False)))
    robot.everything(T0)
    assert robot.camera('head', 0, receive=T0 + 8 * MS)
    assert seen(robot, T0 + 9 * MS).image_stamps_ns['head'] == T0 + 8 * MS


def test_raw_cameras_and_prefixed_arms_work_as_well(make: Any) -> None:
    contract = load_contract('bimanual_static')
    buffer = ObservationBuffer(contract, BufferSettings(require_instruction=False))
    for camera in contract.cameras:
        image = np.random.default_rng(1).integers(0, 255, (12, 16, 3), dtype=np.uint8)
        assert buffer.push(camera.name, fill_image(make('sensor_msgs/Image'), image, T0), T0)
    joints = ['waist', 'shoulder', 'elbow', 'forearm_roll', 'wrist_angle', 'wrist_rotate', 'gripper', 'left_finger']
    for side, pose in (('left_arm', np.arange(8) / 200), ('right_arm', np.arange(8) / 200 + 0.005)):
        assert buffer.push(side, fill_joint_state(make('sensor_msgs/JointState'), joints, pose, T0), T0)
    observation = buffer.sample(T0 + MS)
    assert isinstance(observation, Observation)
    np.testing.assert_array_equal(observation.state, [*np.arange(7) / 200, *(np.arange(7) / 200 + 0.005)])
    np.testing.assert_array_equal(observation.images['low'], image)


@pytest.mark.ros
def test_a_bag_and_a_live_robot_give_the_identical_observation(contract: Contract, rosbags_maker: Any) -> None:
    from rclpy.serialization import deserialize_message
    from rosbags.typesys import Stores, get_typestore

    live, bag = ObservationBuffer(contract), ObservationBuffer(contract)
    store = get_typestore(Stores.ROS2_JAZZY)

    class Both:
        """Pushes the same bytes into both buffers, each deserialised by its own library."""

        contract = live.contract

        def push(self, name: str, msg: Any, receive: int) -> bool:
            wire = bytes(store.serialize_cdr(msg, msg.__msgtype__))
            package, kind = msg.__msgtype__.split('/msg/')
            ros_type = getattr(__import__(f'{package}.msg', fromlist=[kind]), kind)
            first = live.push(name, deserialize_message(wire, ros_type), receive)
            return first & bag.push(name, store.deserialize_cdr(wire, msg.__msgtype__), receive)

    robot = Robot(rosbags_maker, Both())  # type: ignore[arg-type]
    for buffer in (live, bag):
        buffer.set_instruction('go', 'i')
    robot.everything(T0)
    first, second = live.sample(T0 + 9 * MS), bag.sample(T0 + 9 * MS)
    assert isinstance(first, Observation)
    assert isinstance(second, Observation)
    np.testing.assert_array_equal(first.state, second.state)
    assert first.image_stamps_ns == second.image_stamps_ns
    for name in CAMERAS:
        np.testing.assert_array_equal(first.images[name], second.images[name])


def test_one_thread_pushes_while_another_samples(rosbags_maker: Any, contract: Contract) -> None:
    robot = Robot(rosbags_maker, ObservationBuffer(contract, BufferSettings(require_instruction=False)))
    robot.everything(T0)
    failures: list[BaseException] = []

    def push() -> None:
        try:
            for index in range(1, 60):
                robot.everything(T0 + index * 10 * MS)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=push)
    thread.start()
    results = []
    while thread.is_alive():
        results.append(robot.buffer.sample(T0 + 590 * MS))
    thread.join()
    assert not failures
    for result in results:
        if isinstance(result, Observation):
            assert result.stamp_ns <= min(result.image_stamps_ns.values())
            assert np.isfinite(result.state).all()


def test_an_unknown_stream_is_a_mistake_of_the_caller(contract: Contract) -> None:
    with pytest.raises(RobotError, match="'tail' is no stream of bimanual_mobile") as caught:
        ObservationBuffer(contract).push('tail', SimpleNamespace(), T0)
    assert not isinstance(caught.value, Rejected)
