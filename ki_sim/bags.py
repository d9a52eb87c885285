"""A recording of the simulator as a rosbag2 folder, as a recorder on the robot would have written it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ki_bags.types import known, message, serialise
from ki_bags.writer import BagWriter
from ki_robot.contract import Contract, Output, load_contract
from ki_robot.messages import fill_joint_state, fill_multi_array, fill_trajectory, fill_twist, set_time
from ki_sim.errors import SimError
from ki_sim.record import Frame, Recording, Tick
from ki_sim.robot import COLUMNS, POSITION_JOINTS
from ki_sim.world import STEP_NS

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]
ROBOT = 'bimanual_mobile'
EPOCH_NS = 1_700_000_000 * 10**9  # simulated time begins here, so that no stamp is 0 and all of them repeat
EPISODE, INSTRUCTION, SUBTASK = '/episode', '/instruction', '/subtask'
TYPES = {
    'joint_trajectory': 'trajectory_msgs/msg/JointTrajectory',
    'forward_command': 'std_msgs/msg/Float64MultiArray',
    'twist_stamped': 'geometry_msgs/msg/TwistStamped',
}
IMAGE_TYPES = {'compressed': 'sensor_msgs/msg/CompressedImage', 'raw': 'sensor_msgs/msg/Image'}
SUCCESS, FAILURE = 1, 2  # ki_msgs/EpisodeMarker OUTCOME_*


def write_bag(recording: Recording, path: str | Path, index: int = 0, contract: Contract | None = None) -> Path:
    """Write one recording as a rosbag2 folder (MCAP, CRCs) with every topic of the contract.

    Joint states and odometry at 100 Hz, cameras and commands at 20 Hz; an EpisodeMarker at both ends; instruction
    and subtasks as ki_msgs/Instruction; task, seed, split and success in the metadata. Identical bytes per seed.

    Raises:
        BagError: the folder exists, or the disk takes no more.
    """
    contract = contract or load_contract(ROBOT)
    meta = recording.meta()
    custom = {f'ki_sim.{key}': value if isinstance(value, str) else json.dumps(value) for key, value in meta.items()}
    with BagWriter(path, custom=custom) as bag:
        out = Sender(bag, contract)
        start = recording.frames[0].time_ns + EPOCH_NS
        out.marker(start, 0, index, recording.episode.instruction, 0)
        out.text(INSTRUCTION, start, f'{meta["task"]}-{meta["seed"]}', recording.episode.instruction)
        subtask = ''
        for frame in recording.frames:
            for tick in frame.ticks:
                out.tick(tick)
            if frame.subtask != subtask:
                subtask = frame.subtask
                out.text(SUBTASK, frame.time_ns + EPOCH_NS, '', subtask)
            out.frame(frame)
        end = recording.frames[-1].time_ns + STEP_NS + EPOCH_NS
        outcome = SUCCESS if recording.success else FAILURE
        out.marker(end, 1, index, recording.episode.instruction, outcome)
    return Path(path)


class Sink(Protocol):
    """Where serialised messages go: a recording, or publishers."""

    def add_topic(self, name: str, type_name: str) -> None:
        """Announce a topic."""
        ...

    def write(self, topic: str, time_ns: int, data: bytes) -> None:
        """Take one message in CDR."""
        ...


class Sender:
    """Serialises what the simulator senses and commands, onto the topics of the contract: on disk and live alike."""

    def __init__(self, bag: Sink, contract: Contract) -> None:
        self.bag, self.contract = bag, contract
        self.joints, self.odometry = (
            next('/' + s.topic for s in contract.state_streams if s.type == kind)
            for kind in ('joint_state', 'odometry')
        )
        bag.add_topic(self.joints, 'sensor_msgs/msg/JointState')
        bag.add_topic(self.odometry, 'nav_msgs/msg/Odometry')
        for camera in contract.cameras:
            bag.add_topic('/' + camera.topic, IMAGE_TYPES[camera.transport])
        for output in contract.outputs:
            bag.add_topic('/' + output.topic, TYPES[output.kind])
        bag.add_topic(EPISODE, 'ki_msgs/msg/EpisodeMarker')
        for topic in (INSTRUCTION, SUBTASK):
            bag.add_topic(topic, 'ki_msgs/msg/Instruction')

    def marker(self, time_ns: int, phase: int, index: int, task: str, outcome: int) -> None:
        """Begin (phase 0) or end (1) of an episode."""
        """Where the episode begins (phase 0) or ends (1)."""
        msg = message(
            'ki_msgs/msg/EpisodeMarker',
            header=header(time_ns),
            phase=phase,
            episode_index=index,
            task=task,
            outcome=outcome,
            policy_id='scripted expert',
        )
        self._send(EPISODE, time_ns, msg, 'ki_msgs/msg/EpisodeMarker')

    def text(self, topic: str, time_ns: int, name: str, text: str) -> None:
        """An instruction or a subtask."""
        """Instruction or subtask."""
        msg = message('ki_msgs/msg/Instruction', header=header(time_ns), id=name, text=text)
        self._send(topic, time_ns, msg, 'ki_msgs/msg/Instruction')

    def tick(self, tick: Tick) -> None:
        """Joints and base."""
        """Joint states and odometry."""
        time_ns = tick.time_ns + EPOCH_NS
        empty = np.empty(0)
        joints = message(
            'sensor_msgs/msg/JointState', header=header(time_ns), name=[], position=empty, velocity=empty, effort=empty
        )
        fill_joint_state(joints, POSITION_JOINTS, tick.position, time_ns, tick.velocity)
        self._send(self.joints, time_ns, joints, 'sensor_msgs/msg/JointState')
        self._send(self.odometry, time_ns, odometry(time_ns, tick), 'nav_msgs/msg/Odometry')

    def frame(self, frame: Frame) -> None:
        """Pictures and commands of one step."""
        """Pictures and commands."""
        self.images(frame.time_ns + EPOCH_NS, frame.images)
        self.commands(frame.time_ns + EPOCH_NS, frame.action)

    def images(self, time_ns: int, images: Mapping[str, bytes | Image]) -> None:
        """A picture of every camera, all with one stamp: JPEG for a compressed camera, uint8 RGB for a raw one."""
        for camera in self.contract.cameras:
            picture, head = images[camera.name], header(time_ns, f'{camera.name}_camera_optical_frame')
            kind = IMAGE_TYPES[camera.transport]
            if isinstance(picture, bytes) != (camera.transport == 'compressed'):
                raise SimError(
                    f"camera '{camera.name}' is {camera.transport} in robot {self.contract.name}, and the "
                    f'picture is {type(picture).__name__}: recordings hold JPEG, so make it compressed'
                )
            if isinstance(picture, bytes):
                msg = message(kind, header=head, format='jpeg', data=np.frombuffer(picture, np.uint8))
            else:
                height, width = picture.shape[:2]
                size = {'height': height, 'width': width, 'step': 3 * width}
                msg = message(kind, header=head, encoding='rgb8', is_bigendian=0, data=picture.reshape(-1), **size)
            self._send('/' + camera.topic, time_ns, msg, kind)

    def commands(self, time_ns: int, action: Floats, stamp_ns: int | None = None) -> None:
        """An action row, to every controller; `stamp_ns` 0 lets trajectories start on arrival."""
        for output in self.contract.outputs:
            msg = command(output, action, time_ns if stamp_ns is None else stamp_ns)
            self._send('/' + output.topic, time_ns, msg, TYPES[output.kind])

    def _send(self, topic: str, time_ns: int, msg: Any, kind: str) -> None:
        self.bag.write(topic, time_ns, serialise(msg, kind))


def command(output: Output, action: Floats, time_ns: int) -> Any:
    """The message that carries an action row to one controller."""
    values = np.array([action[COLUMNS.index(name)] for name in output.columns])
    if output.kind == 'joint_trajectory':
        empty = message('trajectory_msgs/msg/JointTrajectory', header=header(time_ns), joint_names=[], points=[])
        joints = [name.rpartition('/')[0] for name in output.columns]
        return fill_trajectory(empty, _point, joints, [STEP_NS], values[None], stamp=time_ns)
    if output.kind == 'forward_command':
        layout = message('std_msgs/msg/MultiArrayLayout', dim=[], data_offset=0)
        return fill_multi_array(message('std_msgs/msg/Float64MultiArray', layout=layout, data=values), values)
    twist = message('geometry_msgs/msg/Twist', linear=vector(), angular=vector())
    stamped = message('geometry_msgs/msg/TwistStamped', header=header(time_ns, output.frame_id), twist=twist)
    fill_twist(stamped.twist, output.columns, values)
    return stamped


def odometry(time_ns: int, tick: Tick) -> Any:
    """Where the base is and how it moves."""
    half = tick.pose[2] / 2
    turn = message('geometry_msgs/msg/Quaternion', x=0.0, y=0.0, z=float(np.sin(half)), w=float(np.cos(half)))
    place = known('geometry_msgs/msg/Point')(x=float(tick.pose[0]), y=float(tick.pose[1]), z=0.0)
    pose = message('geometry_msgs/msg/Pose', position=place, orientation=turn)
    linear, angular = vector(float(tick.twist[0]), float(tick.twist[1])), vector(z=float(tick.twist[2]))
    twist = message('geometry_msgs/msg/Twist', linear=linear, angular=angular)
    unknown = np.zeros(36)
    return message(
        'nav_msgs/msg/Odometry',
        header=header(time_ns, 'odom'),
        child_frame_id='base_link',
        pose=message('geometry_msgs/msg/PoseWithCovariance', pose=pose, covariance=unknown),
        twist=message('geometry_msgs/msg/TwistWithCovariance', twist=twist, covariance=unknown),
    )


def header(time_ns: int, frame_id: str = '') -> Any:
    """A std_msgs/Header."""
    stamp = message('builtin_interfaces/msg/Time', sec=0, nanosec=0)
    set_time(stamp, time_ns)
    return message('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id)


def vector(x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Any:
    """A geometry_msgs/Vector3."""
    return message('geometry_msgs/msg/Vector3', x=x, y=y, z=z)


def _point() -> Any:
    empty = np.empty(0)
    wait = message('builtin_interfaces/msg/Duration', sec=0, nanosec=0)
    return message(
        'trajectory_msgs/msg/JointTrajectoryPoint',
        positions=empty,
        velocities=empty,
        accelerations=empty,
        effort=empty,
        time_from_start=wait,
    )
