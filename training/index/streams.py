"""What one recording holds of a contract: every message taken once, through the functions that the live node uses.

Images stay as the JPEG or PNG bytes they were recorded as and go straight to a file; numbers become arrays. A message
that the live node would refuse is refused here for the same reason, and counted.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problems
from ki_bags.reader import Bag, BagTopic
from ki_bags.storage import Message
from ki_bags.topics import find_topic
from ki_robot.contract.contract import Contract
from ki_robot.contract.controller_kinds import CONTROLLER_KINDS
from ki_robot.contract.parts import Camera, Output, StateStream
from ki_robot.errors import Reason, Rejected, RobotError
from ki_robot.messages.arrays import sent_ns, stamp_ns
from ki_robot.messages.commands import command_stamp_ns, read_command
from ki_robot.messages.images import as_bytes, compressed_size, decode_compressed, decode_image, needs_label
from ki_robot.messages.states import STATE_TYPES, StateReader, measured_columns, static_topic
from ki_robot.messages.video import PACKET, VIDEO, VideoDecoder
from ki_robot.observation.buffer import BufferSettings
from ki_robot.observation.frozen_camera import FrameWatch, FrozenWatch, NewestState
from ki_robot.observation.plausibility import StateCheck
from ki_robot.transforms import resize_with_pad
from training.errors import TrainingError
from training.index.stream_clocks import StreamClock

COMPRESSED, RAW = 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/Image'
MARKER, INSTRUCTION, STRING = 'ki_msgs/msg/EpisodeMarker', 'ki_msgs/msg/Instruction', 'std_msgs/msg/String'
CONTROL_SOURCE = 'ki_msgs/msg/ControlSource'
GLITCHES = 0.25  # share of a stream's states that may be dropped one by one as untrue
MODEL_QUALITY = 95  # JPEG of images that are stored at the size of the model
LIVE = BufferSettings()  # what the live node goes by
Timed = TypeVar('Timed', Camera, StateStream)
__all__ = ['Collected', 'Marker', 'Track', 'collect', 'stream_rates']


def _times() -> array[int]:
    return array('q')


@dataclass
class Track:
    """One stream in the order of the recording: when it was stamped, when it was written, and its rows.

    Times are 64-bit integers in a row, so that numpy looks at them without a copy. `numbers` say which message of the
    recording each is.
    """

    stamps: array[int] = field(default_factory=_times)
    logs: array[int] = field(default_factory=_times)
    rows: list[Any] = field(default_factory=list)
    numbers: array[int] = field(default_factory=_times)

    def add(self, stamp: int | None, log_ns: int, row: Any, number: int = 0) -> None:
        """`stamp` None: the message carries no clock; it is dated by its log time later.

        Raises:
            OverflowError: A time that no clock tells; nothing was added.
        """
        times = array('q', (-1 if stamp is None else stamp, log_ns))
        self.stamps.append(times[0])
        self.logs.append(times[1])
        self.rows.append(row)
        self.numbers.append(number)

    def extend(self, other: Track, messages: int) -> None:
        """Takes what came after so many messages of the recording."""
        self.stamps.extend(other.stamps)
        self.logs.extend(other.logs)
        self.rows.extend(other.rows)
        self.numbers.extend(number + messages for number in other.numbers)

    def drop(self, places: Iterable[int]) -> None:
        """Takes some messages out again."""
        kept = sorted(set(range(len(self))).difference(places))
        self.stamps = array('q', (self.stamps[place] for place in kept))
        self.logs = array('q', (self.logs[place] for place in kept))
        self.rows = [self.rows[place] for place in kept]
        self.numbers = array('q', (self.numbers[place] for place in kept))

    def __len__(self) -> int:
        return len(self.rows)


@dataclass
class Doubtful:
    """States of one stream that cannot be true: their places in its track, and why the first cannot."""

    places: list[int] = field(default_factory=list)
    first: str = ''

    def add(self, place: int, why: str) -> None:
        """One more."""
        self.places.append(place)
        self.first = self.first or why


@dataclass(frozen=True)
class Marker:
    """One EpisodeMarker."""

    begins: bool
    task: str
    outcome: int
    index: int


@dataclass
class Collected:
    """Everything of one recording that a contract asks for.

    Attributes:
        cameras: Rows are (offset, length) into the camera's file, and 1 where the live node calls it frozen; while the
            recording is read, 1 where it equals the picture before.
        states: By stream; rows are vectors of the stream's columns, in `state_columns[stream]` order.
        doubtful: By stream; states that cannot be true.
        commands: By output; rows are `ki_robot.messages.commands.Command`s in the order of the output's columns.
        drivers: Who drove from then on; rows are the numbers of ki_msgs/ControlSource.
        missing_outputs: Outputs whose topic was not recorded.
        other_joints: By stream; of each message on its topic that held none of its joints, what it held.
        clocks: By camera, stream or output; what its stamps showed against arrival. Filled by `episodes_of`.
    """

    cameras: dict[str, Track] = field(default_factory=dict)
    states: dict[str, Track] = field(default_factory=dict)
    state_columns: dict[str, tuple[str, ...]] = field(default_factory=dict)
    doubtful: dict[str, Doubtful] = field(default_factory=dict)
    commands: dict[str, Track] = field(default_factory=dict)
    markers: Track = field(default_factory=Track)
    instructions: Track = field(default_factory=Track)
    subtasks: Track = field(default_factory=Track)
    drivers: Track = field(default_factory=Track)
    missing_outputs: list[str] = field(default_factory=list)
    clocks: dict[str, StreamClock] = field(default_factory=dict)
    other_joints: dict[str, list[str]] = field(default_factory=dict)
    messages: int = 0
    watches: dict[str, FrameWatch] = field(default_factory=dict)


def _topic(bag: Bag, wanted: str, types: tuple[str, ...], remap: dict[str, str], problems: Problems) -> BagTopic | None:
    """The topic that a contract calls `wanted`; one of another type, or several candidates, are noted."""
    match = find_topic(bag, wanted, types, remap)
    if match.doubt:
        problems.add(bag.path, wanted, 'ambiguous_topic', match.doubt)
    elif match.others and not match.fits:
        other = match.others[0]
        text = f'{other.name} is {other.type}; the contract needs {" or ".join(types)}'
        problems.add(bag.path, wanted, 'wrong_type', text)
    return match.topic


def collect(
    bag: Bag,
    contract: Contract,
    folder: Path,
    problems: Problems,
    remap: dict[str, str] | None = None,
    store: str = 'original',
    trust_log_time: Collection[str] = (),
) -> Collected:
    """Reads a recording once.

    Args:
        bag: The recording.
        contract: Which topics, which columns.
        folder: Where `CAMERA.images` files are written.
        problems: Refused messages are counted here.
        remap: Contract topic -> topic of the recording.
        store: `original` keeps images as recorded; `model` stores them at the size of the model as JPEG.
        trust_log_time: Cameras, streams and outputs whose stamps are not believed: their arrival dates them.

    Raises:
        TrainingError: A required camera or a state stream has no topic, or not one usable message.
    """
    found = gather(bag, contract, folder, problems, problems, remap or {}, store, trust_log_time, bag.messages)
    problems.extend(bag.problems)
    judge(bag, contract, found, problems)
    return found


def gather(
    bag: Bag,
    contract: Contract,
    folder: Path,
    problems: Problems,
    about: Problems,
    remap: dict[str, str],
    store: str,
    trust_log_time: Collection[str],
    messages_of: Callable[[list[str]], Iterator[Message]],
) -> Collected:
    """Takes each message for itself: nothing of one depends on another, but for video and tf.

    Args:
        bag: The recording.
        contract: Which topics, which columns.
        folder: Where `CAMERA.images` files are written.
        problems: Refused messages are counted here.
        about: What is wrong with the topics of the recording is counted here.
        remap: Contract topic -> topic of the recording.
        store: As in `collect`.
        trust_log_time: As in `collect`.
        messages_of: Gives the messages of some topics.
    """
    found = Collected()
    handlers: dict[str, list[Callable[[Any, int], None]]] = {}
    files: list[Any] = []
    size = _stored_size(contract, store)
    try:
        for camera in contract.cameras:
            topic = _camera_topic(bag, camera, remap, about)
            if topic is None:
                continue
            stream = (folder / f'{camera.name}.images').open('wb')
            files.append(stream)
            track = found.cameras[camera.name] = Track()
            dated = by_arrival(camera) if camera.name in trust_log_time else camera
            handlers.setdefault(topic.name, []).append(_camera_handler(dated, topic.type, track, stream, size, found))
        for source in contract.state_streams:
            dated_state = by_arrival(source) if source.name in trust_log_time else source
            _add_state(bag, contract, dated_state, found, handlers, remap, about)
        for output in contract.robot.outputs:
            _add_command(bag, output, found, handlers, remap, about, output.name in trust_log_time)
        _add_texts(bag, found, handlers)
        _read(bag, handlers, found, problems, messages_of)
    finally:
        for stream in files:
            stream.close()
    return found


def judge(bag: Bag, contract: Contract, found: Collected, problems: Problems) -> None:
    """What only all messages in a row tell, as the live buffer does: untrue states, frozen cameras.

    Raises:
        TrainingError: A required camera or a state stream has not one usable message.
    """
    believed = {name: _judge_states(contract, found, name) for name in found.states}
    for track in found.cameras.values():
        _judge_pictures(contract, found, track, believed)
    for name, doubtful in found.doubtful.items():
        _drop_doubtful(bag, name, found.states[name], doubtful, problems)
    _require(bag, contract, found, problems)


def _judge_states(contract: Contract, found: Collected, name: str) -> NDArray[np.intp]:
    """The places in a stream's track of the states that can be true; the others are noted as doubtful."""
    track, check = found.states[name], StateCheck(contract.robot, found.state_columns[name])
    times = _times_of(track)
    if not len(times):
        return np.zeros(0, dtype=np.intp)
    if (np.diff(times) >= 0).all() and times[0] >= 0 and check.are_true(np.asarray(track.rows), times):
        return np.arange(len(times))
    doubtful = found.doubtful.setdefault(name, Doubtful())
    believed, newest_ns = [], 0
    for place, (time_ns, row) in enumerate(zip(times.tolist(), track.rows, strict=True)):
        if time_ns < newest_ns:  # of an earlier time, or after a jump of the clock: the rules of clocks decide
            check.reset()
        else:
            try:
                check.check(row, time_ns)
                believed.append(place)
            except Rejected as error:
                doubtful.add(place, str(error))
        newest_ns = time_ns
    return np.asarray(believed, dtype=np.intp)


def _judge_pictures(contract: Contract, found: Collected, track: Track, believed: dict[str, NDArray[np.intp]]) -> None:
    """Marks the pictures at which the live node would call the camera frozen."""
    if not any(repeats for _, _, repeats in track.rows):
        return
    numbers = np.asarray(track.numbers, dtype=np.int64)
    names = contract.robot.state_names
    values = np.full((len(numbers), len(names)), np.nan)
    measured_ns = np.zeros((len(numbers), len(names)), dtype=np.int64)
    for name, places in believed.items():
        states = found.states[name]
        newest = np.searchsorted(np.asarray(states.numbers, dtype=np.int64)[places], numbers) - 1
        known = np.flatnonzero(newest >= 0)
        chosen = places[newest[known]]
        for index, column in enumerate(found.state_columns[name]) if len(known) else ():
            values[known, names.index(column)] = np.asarray(states.rows)[chosen, index]
            measured_ns[known, names.index(column)] = _times_of(states)[chosen]
    watch, state = FrozenWatch(LIVE.frozen_frames, LIVE.frozen_motion), NewestState(len(names))
    times = _times_of(track).tolist()
    for place, (offset, length, repeats) in enumerate(track.rows):
        state.values, state.measured_ns = values[place], measured_ns[place]
        watch.see(bool(repeats), times[place], state)
        track.rows[place] = (offset, length, int(watch.is_frozen))


def _times_of(track: Track) -> NDArray[np.int64]:
    """When each message is thought to be of while the recording is read: by its stamp, or by its arrival."""
    stamps, logs = np.asarray(track.stamps, dtype=np.int64), np.asarray(track.logs, dtype=np.int64)
    return np.where(stamps < 0, logs, stamps)


def _drop_doubtful(bag: Bag, name: str, track: Track, doubtful: Doubtful, problems: Problems) -> None:
    """Drops the states that cannot be true, as the live buffer does.

    Where they are many, it is no glitch: the recording is in other units, or of another robot. Then all are kept, so
    that `ki doctor data` can say what is wrong with them.
    """
    if not doubtful.places:
        return
    if len(doubtful.places) > GLITCHES * len(track):
        text = (
            f'{len(doubtful.places)} of {len(track)} states cannot be true, so the live node would refuse them: '
            f'{doubtful.first} Other units, or another robot?'
        )
        problems.add(bag.path, name, 'implausible_stream', text)
        return
    problems.add(bag.path, name, 'implausible', doubtful.first, len(doubtful.places))
    track.drop(doubtful.places)


def _read(
    bag: Bag,
    handlers: dict[str, list[Callable[[Any, int], None]]],
    found: Collected,
    problems: Problems,
    messages_of: Callable[[list[str]], Iterator[Message]],
) -> None:
    for message in messages_of(list(handlers)):
        found.messages += 1
        try:
            decoded = bag.decode(message)
        except Exception as error:  # damaged CDR raises nearly anything: KeyError, UnicodeDecodeError, MemoryError ...
            problems.add(bag.path, message.topic, 'cdr', f'a message does not decode: {type(error).__name__}: {error}')
            continue
        for handle in handlers[message.topic]:
            try:
                handle(decoded, message.log_ns)
            except Rejected as error:
                problems.add(bag.path, message.topic, str(error.reason), str(error))
            except (RobotError, ValueError, TypeError, AttributeError, IndexError, OverflowError, cv2.error) as error:
                problems.add(bag.path, message.topic, 'unusable', f'{type(error).__name__}: {error}')


def _require(bag: Bag, contract: Contract, found: Collected, problems: Problems) -> None:
    for name, others in found.other_joints.items():
        if not len(found.states[name]):
            problems.add(bag.path, name, 'other_joints', others[0], len(others))
    for camera in contract.cameras:
        if camera.required and not len(found.cameras.get(camera.name, ())):
            raise TrainingError(
                f'{bag.path}: no usable image of camera {camera.name} ({camera.topic}); record that topic, '
                'or name it with --remap.'
            )
    for stream in contract.state_streams:
        if not len(found.states.get(stream.name, ())):
            raise TrainingError(
                f'{bag.path}: no usable message of state stream {stream.name} ({stream.topic}); record that topic, '
                'name it with --remap, or use the contract of this robot.'
            )


def _dated(stamp: int, mode: str) -> int | None:
    """The stamp of a message under a contract's rule; None where its arrival dates it."""
    if mode == 'receive':
        return None
    if stamp <= 0:
        raise Rejected(Reason.ZERO_STAMP, 'a message has no stamp; set header.stamp, or write stamp: receive.')
    return stamp


def by_arrival(spec: Timed) -> Timed:
    """A camera or state stream whose messages are dated by their arrival."""
    return spec.replace(stamp='receive')


def _stored_size(contract: Contract, store: str) -> int | None:
    """The side of pictures that are stored at the model's size; None: as they were recorded."""
    if store != 'model':
        return None
    cut = [camera.name for camera in contract.cameras if camera.crop is not None]
    if cut:
        raise TrainingError(
            f"store is 'model', and {contract.name} crops the pictures of {', '.join(cut)}: at the model's size "
            'too few pixels would be left in the crop; write store: original.'
        )
    return contract.image_size


def _camera_topic(bag: Bag, camera: Camera, remap: dict[str, str], problems: Problems) -> BagTopic | None:
    """The camera's topic; where only the other transport was recorded, that one."""
    kinds = (RAW, COMPRESSED) if camera.transport == 'raw' else (COMPRESSED, RAW)
    topic = _topic(bag, camera.topic, (*kinds, VIDEO, PACKET), remap, problems)
    if topic is not None:
        return topic
    other = camera.topic.removesuffix('/compressed') if kinds[0] == COMPRESSED else f'{camera.topic}/compressed'
    if other != camera.topic:
        topic = _topic(bag, other, kinds[1:], remap, problems)
        if topic is not None:
            problems.add(bag.path, camera.topic, 'other_transport', f'{topic.name} is used in its place')
            return topic
    problems.add(bag.path, camera.topic, 'missing_topic', f'camera {camera.name}: {camera.topic} was not recorded')
    return None


def _camera_handler(
    camera: Camera, kind: str, track: Track, stream: BinaryIO, size: int | None, found: Collected
) -> Callable[[Any, int], None]:
    watch = found.watches[camera.name] = FrameWatch()
    video = VideoDecoder() if kind in (VIDEO, PACKET) else None

    def take(message: Any, log_ns: int) -> None:
        sent = sent_ns(message)
        # Every packet of a video counts for those after it, also one without a stamp.
        picture = video.decode(message, sent or log_ns) if video is not None else None
        stamp = _dated(sent, camera.stamp)
        image: NDArray[np.uint8] | None = picture
        data: NDArray[np.uint8] | None = None
        if kind == COMPRESSED:
            data = np.asarray(message.data, dtype=np.uint8)
            # The index keeps no labels, so a picture that its bytes alone do not tell is stored as what it means.
            converted = size is not None or needs_label(data, str(message.format))
            image = decode_compressed(message) if converted else None
        elif image is None:
            image = decode_image(message)
        if image is not None:
            height, width = image.shape[:2]
        else:
            assert data is not None
            width, height = compressed_size(data, str(message.format))
        if camera.width is not None and (width, height) != (camera.width, camera.height):
            raise Rejected(
                Reason.WRONG_SIZE, f'image is {width} x {height}; the contract has {camera.width} x {camera.height}.'
            )
        if image is not None:
            data = _encoded(image, size, is_lossy=picture is not None)
        assert data is not None
        offset = stream.tell()
        stream.write(data.data)
        repeats = watch.repeats(as_bytes(message.data if picture is None else picture))
        track.add(stamp, log_ns, (offset, len(data), int(repeats)), found.messages)

    return take


def _encoded(image: NDArray[np.uint8], size: int | None, is_lossy: bool) -> NDArray[np.uint8]:
    """As JPEG at the model's size, or at its own: without loss, unless a video has lost something already."""
    if size is None and not is_lossy:
        kind, settings = '.png', [cv2.IMWRITE_PNG_COMPRESSION, 1]
    else:
        image = image if size is None else resize_with_pad(image, size)
        kind, settings = '.jpg', [cv2.IMWRITE_JPEG_QUALITY, MODEL_QUALITY]
    done, data = cv2.imencode(kind, cv2.cvtColor(image, cv2.COLOR_RGB2BGR), settings)
    if not done:
        raise Rejected(Reason.UNDECODABLE, f'an image of shape {image.shape} cannot be stored.')
    return np.asarray(data, dtype=np.uint8).reshape(-1)


def _add_state(
    bag: Bag,
    contract: Contract,
    source: StateStream,
    found: Collected,
    handlers: dict[str, list[Callable[[Any, int], None]]],
    remap: dict[str, str],
    problems: Problems,
) -> None:
    topic = _topic(bag, source.topic, (STATE_TYPES[source.type],), remap, problems)
    if topic is None:
        text = f'state stream {source.name}: {source.topic} was not recorded'
        problems.add(bag.path, source.topic, 'missing_topic', text)
        return
    columns = measured_columns(contract, source)
    found.state_columns[source.name] = columns
    track = found.states[source.name] = Track()
    reader = StateReader(source, columns)

    def take(message: Any, log_ns: int) -> None:
        try:
            told = reader.read(message)
        except Rejected as error:
            if error.reason is Reason.OTHER_JOINTS:  # another driver's; the stream is not to blame
                found.other_joints.setdefault(source.name, []).append(str(error))
                return
            raise
        if told is None:
            return
        track.add(_dated(told[0], source.stamp), log_ns, told[1], found.messages)

    handlers.setdefault(topic.name, []).append(take)
    still = static_topic(source) and _topic(bag, static_topic(source), (STATE_TYPES[source.type],), remap, problems)
    if still:
        handlers.setdefault(still.name, []).append(lambda message, log_ns: reader.read_static(message))


def _add_command(
    bag: Bag,
    output: Output,
    found: Collected,
    handlers: dict[str, list[Callable[[Any, int], None]]],
    remap: dict[str, str],
    problems: Problems,
    on_arrival: bool,
) -> None:
    topic = _topic(bag, output.topic, CONTROLLER_KINDS[output.kind].messages, remap, problems)
    if topic is None:
        found.missing_outputs.append(output.name)
        return
    track = found.commands[output.name] = Track()

    def handle(message: Any, log_ns: int) -> None:
        stamp = None if on_arrival else command_stamp_ns(message)
        track.add(stamp, log_ns, read_command(message, output.columns))

    handlers.setdefault(topic.name, []).append(handle)


def _add_texts(bag: Bag, found: Collected, handlers: dict[str, list[Callable[[Any, int], None]]]) -> None:
    """Markers, instructions and who drives are known by their type, a subtask by the name of its topic."""

    def marker(message: Any, log_ns: int) -> None:
        row = Marker(message.phase == 0, str(message.task), int(message.outcome), int(message.episode_index))
        found.markers.add(stamp_ns(message.header) or None, log_ns, row)

    def drives(message: Any, log_ns: int) -> None:
        found.drivers.add(stamp_ns(message.header) or None, log_ns, int(message.source))

    def said(track: Track) -> Callable[[Any, int], None]:
        def take(message: Any, log_ns: int) -> None:
            text = str(message.text if hasattr(message, 'text') else message.data)
            stamp = stamp_ns(message.header) if hasattr(message, 'header') else 0
            track.add(stamp or None, log_ns, text)

        return take

    for topic in bag.topics.values():
        if topic.type == MARKER:
            handlers.setdefault(topic.name, []).append(marker)
        elif topic.type == CONTROL_SOURCE:
            handlers.setdefault(topic.name, []).append(drives)
        elif topic.type in (INSTRUCTION, STRING) and topic.name.rpartition('/')[2] == 'subtask':
            handlers.setdefault(topic.name, []).append(said(found.subtasks))
        elif topic.type == INSTRUCTION:
            handlers.setdefault(topic.name, []).append(said(found.instructions))


def stream_rates(found: Collected) -> dict[str, dict[str, float]]:
    """Rate and gaps of every stream, as recorded."""
    rates: dict[str, dict[str, float]] = {}
    tracks = [*found.cameras.items(), *found.states.items(), *((f'command {k}', v) for k, v in found.commands.items())]
    for name, track in tracks:
        times = np.asarray(track.logs if (np.asarray(track.stamps) < 0).any() else track.stamps, dtype=np.float64)
        gaps = np.diff(np.sort(times)) / 1e9
        if not len(gaps) or gaps.sum() <= 0:
            rates[name] = {'count': float(len(track))}
            continue
        halves = [len(half) / half.sum() for half in np.array_split(gaps, 2) if len(half) and half.sum() > 0]
        rates[name] = {
            'count': float(len(track)),
            'rate_hz': float(1.0 / np.median(gaps)) if np.median(gaps) > 0 else float(len(gaps) / gaps.sum()),
            'mean_hz': float(len(gaps) / gaps.sum()),
            'longest_gap_s': float(gaps.max()),
            'drift': float(halves[-1] / halves[0]) if len(halves) == 2 else 1.0,
        }
    return rates
