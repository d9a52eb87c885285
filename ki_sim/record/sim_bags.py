"""A recording of the simulator as a rosbag2 folder, as a recorder on the robot would have written it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ki_bags import message_builders
from ki_bags.types import serialise
from ki_bags.writer import BagWriter
from ki_robot.contract.contract import Contract, load_contract
from ki_robot.messages.states import STATE_TYPES
from ki_sim.errors import SimError
from ki_sim.record.record import RecordedFrame, Recording, Tick
from ki_sim.world.robot import BASE_COLUMNS, COLUMNS, POSITION_JOINTS
from ki_sim.world.world import STEP_NS

Floats = npt.NDArray[np.float64]
Image = npt.NDArray[np.uint8]
ROBOT = 'bimanual_mobile'
HANDS_ROBOT = 'bimanual_hands'  # the same, told by the poses of its hands
DEMO_ROBOT = 'bimanual_demo'  # these, seen by one camera that looks from across the table
ROBOTS = (ROBOT, HANDS_ROBOT, DEMO_ROBOT)
EPOCH_NS = 1_700_000_000 * 10**9  # simulated time begins here, so that no stamp is 0 and all of them repeat
EPISODE, INSTRUCTION, SUBTASK, CONTROL_SOURCE = '/episode', '/instruction', '/subtask', '/control_source'
IMAGE_TYPES = {'compressed': message_builders.COMPRESSED, 'raw': message_builders.RAW}
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
        out.driver = recording.driver
        out.marker(start, 0, index, recording.episode.instruction, 0)
        out.text(INSTRUCTION, start, f'{meta["task"]}-{meta["seed"]}', recording.episode.instruction)
        subtask, drives = '', None
        for frame in recording.frames:
            if frame.driver is not None and frame.driver != drives:
                drives = frame.driver
                out.control_source(frame.time_ns + EPOCH_NS, drives)
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
        self.driver = 'scripted expert'
        # Joint states, and odometry where the contract reads it.
        self._states = {stream.type: '/' + stream.topic for stream in contract.state_streams}
        for kind, topic in self._states.items():
            bag.add_topic(topic, STATE_TYPES[kind])
        for camera in contract.cameras:
            bag.add_topic('/' + camera.topic, IMAGE_TYPES[camera.transport])
        for output in contract.outputs:
            bag.add_topic('/' + output.topic, message_builders.COMMAND_TYPES[output.kind])
        bag.add_topic(EPISODE, message_builders.MARKER)
        for topic in (INSTRUCTION, SUBTASK):
            bag.add_topic(topic, message_builders.INSTRUCTION)

    def marker(self, time_ns: int, phase: int, index: int, task: str, outcome: int) -> None:
        """Where the episode begins (phase 0) or ends (1)."""
        self._send(EPISODE, time_ns, message_builders.marker(time_ns, phase, index, task, outcome, self.driver))

    def control_source(self, time_ns: int, source: int) -> None:
        """Who drives from then on, by the numbers of ki_msgs/ControlSource."""
        self.bag.add_topic(CONTROL_SOURCE, message_builders.CONTROL_SOURCE)
        self._send(CONTROL_SOURCE, time_ns, message_builders.control_source(time_ns, source))

    def text(self, topic: str, time_ns: int, name: str, text: str) -> None:
        """An instruction or a subtask."""
        self._send(topic, time_ns, message_builders.instruction(time_ns, text, name))

    def tick(self, tick: Tick) -> None:
        """Joint states and odometry."""
        time_ns = tick.time_ns + EPOCH_NS
        joints = message_builders.joint_state(time_ns, POSITION_JOINTS, tick.position, tick.velocity, tick.effort)
        self._send(self._states['joint_state'], time_ns, joints)
        if 'odometry' in self._states:
            x, y, yaw = tick.pose
            odometry = message_builders.odometry(time_ns, BASE_COLUMNS, tick.twist, (x, y, yaw))
            self._send(self._states['odometry'], time_ns, odometry)

    def frame(self, frame: RecordedFrame) -> None:
        """Pictures and commands of one step."""
        self.images(frame.time_ns + EPOCH_NS, frame.images)
        self.commands(frame.time_ns + EPOCH_NS, frame.action)

    def images(self, time_ns: int, images: Mapping[str, bytes | Image]) -> None:
        """A picture of every camera, all with one stamp: JPEG for a compressed camera, uint8 RGB for a raw one."""
        for camera in self.contract.cameras:
            picture, frame_id = images[camera.name], f'{camera.name}_camera_optical_frame'
            if isinstance(picture, bytes) != (camera.transport == 'compressed'):
                raise SimError(
                    f"camera '{camera.name}' is {camera.transport} in robot {self.contract.name}, and the "
                    f'picture is {type(picture).__name__}: recordings hold JPEG, so make it compressed'
                )
            if isinstance(picture, bytes):
                message = message_builders.compressed(time_ns, picture, frame_id)
            else:
                message = message_builders.raw(time_ns, picture, frame_id)
            self._send('/' + camera.topic, time_ns, message)

    def commands(self, time_ns: int, action: Floats, stamp_ns: int | None = None) -> None:
        """An action row, to every controller; `stamp_ns` 0 lets trajectories start on arrival."""
        for output in self.contract.robot.outputs:
            values = [action[COLUMNS.index(name)] for name in output.columns]
            stamp = time_ns if stamp_ns is None else stamp_ns
            self._send('/' + output.topic, time_ns, message_builders.command(output, stamp, values, STEP_NS))

    def _send(self, topic: str, time_ns: int, value: Any) -> None:
        self.bag.write(topic, time_ns, serialise(value, value.__msgtype__))
