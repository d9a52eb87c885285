"""The newest message of every stream, judged for age, order and agreement.

The live node and a bag reader use it alike: messages are pushed with the time of their arrival, samples are taken at
a time that is passed in, and no clock is read here. Callbacks only store a camera message; it is decoded when a sample
needs it, or when `decode` says that the next one will. Joint states and odometry are small and are read on arrival, so
that a broken one is counted at once.

One thread may push while another samples.
"""

from __future__ import annotations

import functools
import threading
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_common.errors import shown
from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Camera, StateStream
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.arrays import NS, Vector, sent_ns
from ki_robot.messages.images import MAX_IMAGE_BYTES, Image, as_bytes
from ki_robot.messages.states import StateReader, measured_columns
from ki_robot.messages.video import VIDEO_MESSAGES, VideoDecoder
from ki_robot.observation.decode_threads import DecodeThreads
from ki_robot.observation.frozen_camera import FrozenWatch, NewestState
from ki_robot.observation.observation import (
    InputFault,
    NotReady,
    Observation,
    StreamProblem,
    StreamReport,
    StreamState,
    build_observation,
    decode_camera,
    of_stated_size,
)
from ki_robot.observation.plausibility import StateCheck
from ki_robot.observation.stamps import FUTURE_TOLERANCE_NS, check_stamp, is_out_of_step, is_too_old
from ki_robot.space.robot_space import RobotSpace


@dataclass(frozen=True)
class BufferSettings:
    """How strict the buffer is.

    A stamp may lie `future_tolerance_ns` ahead of its arrival (clocks of two machines). A step of the clock backwards
    by more than `jump_ns` empties the buffer. A camera is frozen when `frozen_frames` frames in a row are equal while
    some state column moved by `frozen_motion` (its own unit): a still scene in front of a still robot is no fault.
    Without `plausible_only` a state is taken even where the robot cannot be, for who looks for what is wrong with it.
    """

    future_tolerance_ns: int = FUTURE_TOLERANCE_NS
    jump_ns: int = 50_000_000
    frozen_frames: int = 5
    frozen_motion: float = 0.05
    require_instruction: bool = True
    plausible_only: bool = True
    max_image_bytes: int = MAX_IMAGE_BYTES


class _Entry:
    """A stored message: its stamp, and the camera message or the state values; `image` once it is decoded."""

    __slots__ = ('decoding', 'image', 'payload', 'refused', 'stamp_ns')

    def __init__(self, stamp: int, payload: Any) -> None:
        self.stamp_ns = stamp
        self.payload = payload
        self.image: Image | None = None
        self.refused: Rejected | None = None
        self.decoding = threading.Lock()


@dataclass
class _Stream:
    """One topic with its newest message and its counters."""

    spec: Camera | StateStream
    reader: StateReader | None = None
    indices: NDArray[np.intp] = field(default_factory=lambda: np.zeros(0, np.intp))
    newest: _Entry | None = None
    last_stamp_ns: int = 0
    frozen: FrozenWatch | None = None
    video: VideoDecoder | None = None
    check: StateCheck | None = None
    received: int = 0
    rejected: Counter[Reason] = field(default_factory=Counter)
    last_reason: Reason | None = None
    last_error: str = ''
    arrivals: deque[int] = field(default_factory=lambda: deque(maxlen=512))

    @property
    def max_age_ns(self) -> int:
        return round(self.spec.max_age_s * NS)

    def count(self, receive_ns: int) -> None:
        self.received += 1
        self.arrivals.append(receive_ns)

    def refuse(self, error: Rejected) -> None:
        self.rejected[error.reason] += 1
        if error.reason is Reason.OTHER_JOINTS and self.last_stamp_ns:
            return  # of another driver on the same topic: that says nothing about this stream
        self.last_reason, self.last_error = error.reason, str(error)

    def clear(self) -> None:
        self.newest = None
        self.last_stamp_ns = 0
        self.arrivals.clear()
        if self.reader is not None:
            self.reader.clear()
        if self.check is not None:
            self.check.reset()
        if self.frozen is not None:
            self.frozen.clear()
        if self.video is not None:
            self.video.reset()


class ObservationBuffer:
    """The newest message of every stream of a contract; `push` what arrives, `sample` when the policy is free.

    Args:
        contract: The robot.
        settings: How strict it is.
        threads: Decode the pictures that `decode` names; None: the caller of `decode` does.

    Attributes:
        picture_size: Of the square that the policy is shown, where it was trained on reduced JPEGs; None: pictures are
            decoded at their size.
        epoch: Changes when the clock jumps.
    """

    def __init__(
        self,
        contract: Contract,
        settings: BufferSettings | None = None,
        threads: DecodeThreads | None = None,
        picture_size: int | None = None,
    ) -> None:
        self.contract = contract
        self.settings = settings or BufferSettings()
        self.picture_size = picture_size
        self.epoch = 0
        self._threads = threads
        self._lock = threading.Lock()
        self._now_ns = 0
        self._instruction = ('', '')
        robot = contract.robot
        self._space = RobotSpace(contract)
        self._space_lock = threading.Lock()  # several threads may ask for a state
        self._newest_state = NewestState(len(robot.state))
        self._streams: dict[str, _Stream] = {}
        for camera in contract.cameras:
            watch = FrozenWatch(self.settings.frozen_frames, self.settings.frozen_motion)
            video = VideoDecoder(self.settings.max_image_bytes) if camera.transport in VIDEO_MESSAGES else None
            self._streams[camera.name] = _Stream(camera, frozen=watch, video=video)
        for spec in contract.state_streams:
            names = measured_columns(contract, spec)
            indices = [robot.state_names.index(name) for name in names]
            check = StateCheck(robot, names) if self.settings.plausible_only else None
            self._streams[spec.name] = _Stream(
                spec, StateReader(spec, names), np.array(indices, dtype=np.intp), check=check
            )

    def set_instruction(self, text: str, instruction_id: str = '') -> None:
        """The instruction of every later sample."""
        with self._lock:
            self._instruction = (text.strip(), instruction_id)

    def flush(self) -> None:
        """Forgets all messages and begins a new epoch: the clock jumped, or another bag begins."""
        with self._lock:
            self._flush()

    def push(self, name: str, msg: Any, receive_ns: int) -> bool:
        """Takes a message of the camera or state stream `name`; False when it was refused (and counted).

        Also False for a message of tf that tells nothing of the stream.

        Args:
            name: A camera or state stream of the contract.
            msg: rclpy or rosbags message of the stream's type.
            receive_ns: When it arrived, on the clock of its stamps: now, or the bag's receive time.
        """
        with self._lock:
            self._tick(receive_ns)
            stream = self._stream(name)
            try:
                found = (sent_ns(msg), None) if stream.reader is None else stream.reader.read(msg)
                if found is None:
                    return False
                stream.count(receive_ns)
            except Rejected as error:
                stream.count(receive_ns)
                stream.refuse(error)
                return False
            try:
                stamp = receive_ns if stream.spec.stamp == 'receive' else found[0]
                self._keep(stream, stamp, msg, found[1], receive_ns)
            except Rejected as error:
                stream.refuse(error)
                return False
            return True

    def newest(self, name: str) -> tuple[int, Any]:
        """Stamp of the newest message of a stream that was taken, and what is kept: frame, picture or values (C,).

        Raises:
            RobotError: There is no such stream, or nothing was taken yet.
        """
        entry = self._stream(name).newest
        if entry is None:
            raise RobotError(f'{name}: no message was taken yet.')
        return entry.stamp_ns, entry.payload

    def push_static(self, name: str, msg: Any) -> None:
        """Takes a message of tf_static for the tf stream `name`: frames that stand still against each other."""
        with self._lock:
            stream = self._stream(name)
            if stream.reader is not None:
                try:
                    stream.reader.read_static(msg)
                except Rejected as error:
                    stream.refuse(error)

    def _keep(self, stream: _Stream, stamp: int, msg: Any, values: Vector | None, receive_ns: int) -> None:
        """A message becomes the newest of its stream, if it may."""
        # Every packet of a video counts for those after it, also one that is refused for its stamp.
        picture = stream.video.decode(msg, stamp) if stream.video is not None else None
        check_stamp(stream.spec, stamp, receive_ns, stream.last_stamp_ns, self.settings.future_tolerance_ns)
        if values is None:
            stream.newest = self._look(stream, msg, picture, stamp)
        else:
            if stream.check is not None:
                stream.check.check(values, stamp)
            stream.newest = _Entry(stamp, values)
            self._newest_state.take(stream.indices, values, stamp)
        stream.last_stamp_ns, stream.last_reason, stream.last_error = stamp, None, ''

    def sample(self, now_ns: int) -> Observation | NotReady:
        """The observation at `now_ns`, or every reason why there is none."""
        problems, used, optional, (text, instruction_id), epoch = self._survey(now_ns)
        if problems:
            return NotReady(tuple(problems))
        return self._build(used, optional, text, instruction_id, epoch)

    def decode(self, names: Iterable[str]) -> None:
        """Decodes the newest frames of some cameras ahead of `sample`, which then finds them done or under way.

        A frame that does not decode is left for `sample` to refuse.
        """
        for name in names:
            stream = self._stream(name)
            camera, entry = stream.spec, stream.newest
            if entry is not None and isinstance(camera, Camera) and not self._hand_over(camera, entry):
                self._decode(camera, entry)

    def state(self, now_ns: int) -> Vector | None:
        """The state (S,) at `now_ns` whatever the cameras do; None while a state stream stands in the way."""
        with self._lock:
            self._tick(now_ns)
            if any(self._judge(self._streams[spec.name], now_ns) for spec in self.contract.state_streams):
                return None
            measured = np.array(self._newest_state.values)
        with self._space_lock:
            return self._space.state(measured)

    def problems(self, now_ns: int) -> tuple[StreamProblem, ...]:
        """What stands in the way of a sample at `now_ns`, without decoding an image; empty when nothing does."""
        return tuple(self._survey(now_ns)[0])

    def health(self, now_ns: int) -> tuple[StreamReport, ...]:
        """How every stream fares, cameras first, in the contract's order."""
        with self._lock:
            return tuple(self._report(name, stream, now_ns) for name, stream in self._streams.items())

    def _survey(self, now_ns: int) -> tuple[list[StreamProblem], dict[str, _Entry], set[str], tuple[str, str], int]:
        """Problems, usable entries, names of the optional cameras, instruction with its id, epoch."""
        with self._lock:
            self._tick(now_ns)
            entries = {name: stream.newest for name, stream in self._streams.items()}
            problems = [problem for stream in self._streams.values() for problem in self._judge(stream, now_ns)]
            instruction, epoch = self._instruction, self.epoch
        blocked = {problem.stream for problem in problems}
        used = {name: entry for name, entry in entries.items() if entry is not None and name not in blocked}
        optional = {camera.name for camera in self.contract.cameras if not camera.required}
        problems = [problem for problem in problems if problem.stream not in optional]
        if self.settings.require_instruction and not instruction[0]:
            problems.append(StreamProblem('instruction', InputFault.NO_INSTRUCTION, 'No instruction was given.'))
        problems += self._spread(used)
        return problems, used, optional, instruction, epoch

    def _stream(self, name: str) -> _Stream:
        if name not in self._streams:
            raise RobotError(f'{shown(name)} is no stream of {self.contract.name}; it has {", ".join(self._streams)}.')
        return self._streams[name]

    def _flush(self) -> None:
        self.epoch += 1
        self._newest_state.clear()
        for stream in self._streams.values():
            stream.clear()

    def _tick(self, now_ns: int) -> None:
        """Follows the clock that callers pass in; a step back by more than `jump_ns` begins a new epoch."""
        if now_ns < self._now_ns - self.settings.jump_ns:
            self._flush()
            self._now_ns = now_ns
        self._now_ns = max(self._now_ns, now_ns)

    def _look(self, stream: _Stream, msg: Any, picture: Image | None, stamp: int) -> _Entry:
        """What is checked of a frame on arrival: its size, and whether it is the last one again."""
        entry = _Entry(stamp, msg)
        data = as_bytes(msg.data)
        if picture is not None and isinstance(stream.spec, Camera):
            entry.payload = entry.image = of_stated_size(stream.spec, picture)
            data = picture.reshape(-1)
        elif data.size > self.settings.max_image_bytes:
            raise Rejected(
                Reason.TOO_LARGE, f'image has {data.size} bytes; at most {self.settings.max_image_bytes} are accepted.'
            )
        if stream.frozen is not None:
            stream.frozen.update(data, stamp, self._newest_state)
        return entry

    def _judge(self, stream: _Stream, now_ns: int) -> list[StreamProblem]:
        name, entry = stream.spec.name, stream.newest
        if entry is None:
            if stream.last_reason is not None:
                return [StreamProblem(name, InputFault.INVALID, f'No usable message: {stream.last_error}')]
            if self.epoch:
                return [StreamProblem(name, InputFault.CLOCK_JUMP, f'{name}: no message since the clock jumped.')]
            return [StreamProblem(name, InputFault.NEVER_RECEIVED, f'{name}: nothing received on {stream.spec.topic}.')]
        age_ns = now_ns - entry.stamp_ns
        if is_too_old(age_ns, stream.spec.max_age_s):
            message = f'{name}: the newest message is {age_ns / NS:.3f} s old; max_age_s is {stream.spec.max_age_s}.'
            if stream.last_error:
                message = f'{message} Later ones were refused: {stream.last_error}'
            return [StreamProblem(name, InputFault.STALE, message)]
        if stream.frozen is not None and stream.frozen.is_frozen:
            message = f'{name}: {stream.frozen.count} equal frames in a row while the robot moved.'
            return [StreamProblem(name, InputFault.FROZEN, message)]
        return []

    def _spread(self, used: Mapping[str, _Entry]) -> list[StreamProblem]:
        """The streams must have been seen at about the same time."""
        if len(used) < 2:
            return []
        oldest = min(used, key=lambda name: used[name].stamp_ns)
        newest = max(used, key=lambda name: used[name].stamp_ns)
        spread_ns = used[newest].stamp_ns - used[oldest].stamp_ns
        if not is_out_of_step(spread_ns, self.contract.sync_tolerance_s):
            return []
        message = (
            f'{oldest} is {spread_ns / NS:.3f} s behind {newest}; sync_tolerance_s is {self.contract.sync_tolerance_s}.'
        )
        return [StreamProblem('*', InputFault.UNSYNCHRONIZED, message)]

    def _build(
        self, used: Mapping[str, _Entry], optional: set[str], text: str, instruction_id: str, epoch: int
    ) -> Observation | NotReady:
        """Decodes outside the lock: a callback never waits for a JPEG."""
        images: dict[str, Image] = {}
        pictures = [(camera, used[camera.name]) for camera in self.contract.cameras if camera.name in used]
        for camera, entry in pictures[1:]:  # this thread begins with the first
            self._hand_over(camera, entry)
        for camera, entry in pictures:
            try:
                images[camera.name] = self._picture(camera, entry)
            except Rejected as error:
                self._drop(camera.name, entry, error)
                if camera.name not in optional:
                    return NotReady((StreamProblem(camera.name, InputFault.INVALID, f'{camera.name}: {error}'),))
        states = {spec.name: used[spec.name] for spec in self.contract.state_streams}
        with self._space_lock:
            return build_observation(
                self.contract,
                images,
                {name: used[name].stamp_ns for name in images},
                {name: entry.payload for name, entry in states.items()},
                {name: entry.stamp_ns for name, entry in states.items()},
                text,
                instruction_id,
                epoch,
                self._space,
            )

    def _picture(self, camera: Camera, entry: _Entry) -> Image:
        """The picture of a frame; waits for the thread that decodes it, where one does.

        Raises:
            Rejected: It does not decode.
        """
        self._decode(camera, entry)
        if entry.image is None:
            assert entry.refused is not None  # one of both is there after `_decode`
            raise entry.refused
        return entry.image

    def _hand_over(self, camera: Camera, entry: _Entry) -> bool:
        """Has the threads decode a frame that is not decoded yet; False where there are none."""
        if self._threads is None:
            return False
        if entry.image is None:
            self._threads.ask((id(self), camera.name), functools.partial(self._decode, camera, entry))
        return True

    def _decode(self, camera: Camera, entry: _Entry) -> None:
        """Decodes a frame once, whoever comes first; others wait."""
        with entry.decoding:
            if entry.image is None and entry.refused is None:
                try:
                    entry.image = decode_camera(camera, entry.payload, self.settings.max_image_bytes, self.picture_size)
                except Rejected as error:
                    entry.refused = error

    def _drop(self, name: str, entry: _Entry, error: Rejected) -> None:
        """Counts a frame that does not decode once, and never offers it again."""
        with self._lock:
            stream = self._streams[name]
            stream.refuse(error)
            if stream.newest is entry:
                stream.newest = None

    def _report(self, name: str, stream: _Stream, now_ns: int) -> StreamReport:
        age_ns = None if stream.newest is None else now_ns - stream.newest.stamp_ns
        skewed = (Reason.ZERO_STAMP, Reason.FUTURE_STAMP, Reason.BACKWARD_STAMP)
        if stream.last_reason in skewed:
            state = StreamState.CLOCK_SKEW
        elif stream.last_reason not in (None, Reason.STALE):
            state = StreamState.INVALID
        elif not stream.received:
            state = StreamState.NEVER_RECEIVED
        elif age_ns is None or is_too_old(age_ns, stream.spec.max_age_s):
            state = StreamState.STALE
        else:
            state = StreamState.OK
        recent = sum(1 for arrival in stream.arrivals if 0 <= now_ns - arrival < NS)
        return StreamReport(
            name=name,
            topic=stream.spec.topic,
            state=state,
            age_ns=age_ns,
            max_age_ns=stream.max_age_ns,
            rate_hz=float(recent),
            received=stream.received,
            rejected=dict(stream.rejected),
            last_error=stream.last_error,
        )
