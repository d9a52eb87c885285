"""One observation: what the policy sees at once, or every reason why it sees nothing; and the health of its streams."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Any

import numpy as np

from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Camera
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.arrays import Vector
from ki_robot.messages.images import (
    MAX_IMAGE_BYTES,
    Image,
    as_bytes,
    compressed_size,
    decode_compressed,
    decode_image,
    needs_label,
)
from ki_robot.space.robot_space import RobotSpace
from ki_robot.transforms import needed_side


class InputFault(str, Enum):
    """Why no observation can be had right now."""

    NEVER_RECEIVED = 'never_received'
    STALE = 'stale'
    INVALID = 'invalid'
    FROZEN = 'frozen'
    UNSYNCHRONIZED = 'unsynchronized'
    CLOCK_JUMP = 'clock_jump'
    NO_INSTRUCTION = 'no_instruction'

    def __str__(self) -> str:
        return self.value


class StreamState(IntEnum):
    """The states of ki_msgs/StreamHealth, with its numbers."""

    NEVER_RECEIVED = 0
    OK = 1
    STALE = 2
    INVALID = 3
    CLOCK_SKEW = 4


@dataclass(frozen=True, eq=False)
class Observation:
    """What the policy sees at once.

    `stamp_ns` is the oldest stamp among the inputs; images are uint8 RGB, by camera name in model order and without
    those that are missing and not required; state is float64 (S,) in the contract's order; `epoch` counts clock jumps.
    """

    stamp_ns: int
    images: dict[str, Image]
    image_stamps_ns: dict[str, int]
    state: Vector
    state_stamp_ns: int
    instruction: str = ''
    instruction_id: str = ''
    epoch: int = 0


@dataclass(frozen=True)
class StreamProblem:
    """One stream (or `instruction`, or `*` for several together) that stands in the way."""

    stream: str
    hold: InputFault
    message: str


@dataclass(frozen=True)
class NotReady:
    """No observation, and every reason why."""

    problems: tuple[StreamProblem, ...]

    @property
    def hold(self) -> InputFault:
        """The first reason."""
        return self.problems[0].hold

    def __str__(self) -> str:
        return ' '.join(problem.message for problem in self.problems)


@dataclass(frozen=True)
class StreamReport:
    """The health of one stream, as ki_msgs/StreamHealth carries it; age is None before the first usable message."""

    name: str
    topic: str
    state: StreamState
    age_ns: int | None
    max_age_ns: int
    rate_hz: float
    received: int
    rejected: dict[Reason, int]
    last_error: str


def decode_camera(camera: Camera, msg: Any, max_bytes: int = MAX_IMAGE_BYTES, size: int | None = None) -> Image:
    """A camera's message as uint8 RGB, the one way in the node, in replays and in training (`decode_stored`).

    A picture of a video needs its decoder.

    Args:
        camera: The contract's.
        msg: As rclpy or rosbags give it.
        max_bytes: Largest picture accepted.
        size: Of the square that a policy is shown, where it was trained on reduced JPEGs (`Processing.jpeg_decode`).

    Raises:
        Rejected: It does not decode, or has another size than the contract states.
    """
    if camera.transport != 'compressed':
        return of_stated_size(camera, decode_image(msg, max_bytes))
    image = decode_compressed(msg, max_bytes, needed_side(camera.crop, size))
    if size is not None and camera.width is not None and not needs_label(data := as_bytes(msg.data), str(msg.format)):
        _check_size(camera, *compressed_size(data))
        return image
    return of_stated_size(camera, image)


def of_stated_size(camera: Camera, image: Image) -> Image:
    """The image, if it has the size that the contract states.

    Raises:
        Rejected: It has not.
    """
    _check_size(camera, image.shape[1], image.shape[0])
    return image


def _check_size(camera: Camera, width: int, height: int) -> None:
    if camera.width is not None and (width, height) != (camera.width, camera.height):
        raise Rejected(
            Reason.WRONG_SIZE, f'image is {width} x {height}; the contract says {camera.width} x {camera.height}.'
        )


def build_observation(
    contract: Contract,
    images: Mapping[str, Image],
    image_stamps_ns: Mapping[str, int],
    states: Mapping[str, Vector],
    state_stamps_ns: Mapping[str, int],
    instruction: str = '',
    instruction_id: str = '',
    epoch: int = 0,
    space: RobotSpace | None = None,
) -> Observation:
    """Puts decoded images and per-stream state values together, in the contract's order.

    Args:
        contract: The robot.
        images: uint8 RGB by camera name.
        image_stamps_ns: Their stamps.
        states: For each state stream, the values of its columns in the order of `contract.robot`.
        state_stamps_ns: Their stamps.
        instruction: What to do.
        instruction_id: Which instruction that is.
        epoch: Clock jumps so far.
        space: Of this contract, for who builds many; made here otherwise.

    Raises:
        RobotError: A required camera or a state stream is not given.
    """
    for camera in contract.cameras:
        if camera.required and camera.name not in images:
            raise RobotError(f'camera {camera.name!r} of {contract.name} is missing; it is required.')
    measured = np.empty(len(contract.robot.state))
    for spec in contract.state_streams:
        if spec.name not in states:
            raise RobotError(f'state stream {spec.name!r} of {contract.name} is missing.')
        measured[[column.source == spec.name for column in contract.robot.state]] = states[spec.name]
    ordered = [camera.name for camera in contract.cameras if camera.name in images]
    state_stamp = min(state_stamps_ns.values())
    return Observation(
        stamp_ns=min([state_stamp, *(image_stamps_ns[name] for name in ordered)]),
        images={name: images[name] for name in ordered},
        image_stamps_ns={name: image_stamps_ns[name] for name in ordered},
        state=(space or RobotSpace(contract)).state(measured),
        state_stamp_ns=state_stamp,
        instruction=instruction,
        instruction_id=instruction_id,
        epoch=epoch,
    )
