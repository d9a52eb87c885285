"""A replay as a Rerun recording: what the policy saw, what was measured and commanded, and the chunks that it made.

Open it with `rerun FILE.rrd`. Needs the extra `rerun`; nothing of it is imported before it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ki_bags.reader import open_bag
from ki_policy_node.errors import NodeError
from ki_policy_node.replay.bag_topics import match_topics
from ki_policy_node.replay.replay import Replay
from ki_robot.contract.parts import Camera
from ki_robot.errors import RobotError
from ki_robot.messages.commands import read_command
from ki_robot.messages.images import as_bytes
from ki_robot.messages.states import StateReader, measured_columns
from ki_robot.observation.observation import decode_camera

STARTS = {b'\xff\xd8\xff': 'image/jpeg', b'\x89PNG': 'image/png'}
STILLS = ('compressed', 'raw')


def write_rerun(replayed: Replay, bag: Path, out: Path) -> Path:
    """Writes the recording.

    Args:
        replayed: What the policy made of the bag.
        bag: The same bag.
        out: The .rrd to write.

    Raises:
        NodeError: rerun-sdk is not installed.
        BagError: the bag cannot be read any more.
    """
    try:
        import rerun
    except ModuleNotFoundError as error:
        if error.name != 'rerun':
            raise
        raise NodeError(
            "--rerun needs rerun-sdk, which is not installed; write pip install 'ki_policy_node[rerun]'."
        ) from error
    out.parent.mkdir(parents=True, exist_ok=True)
    stream = rerun.RecordingStream('ki_replay')
    stream.save(out)
    writer = _Writer(rerun, stream)
    _write_messages(writer, replayed, bag)
    _write_chunks(writer, replayed)
    stream.disconnect()
    return out


class _Writer:
    """Logs on one timeline, the bag's clock."""

    def __init__(self, rerun: Any, stream: Any) -> None:
        self._rerun, self._stream = rerun, stream

    def at(self, time_ns: int) -> None:
        """What comes next was so at this time."""
        self._stream.set_time('bag', timestamp=np.datetime64(time_ns, 'ns'))

    def numbers(self, what: str, names: tuple[str, ...], values: np.ndarray) -> None:
        """One value a column; those that are not known are left out."""
        for name, value in zip(names, values.tolist(), strict=True):
            if np.isfinite(value):
                self._stream.log(f'{what}/{name}', self._rerun.Scalars(value))

    def text(self, what: str, text: str) -> None:
        """A line of a log."""
        self._stream.log(what, self._rerun.TextLog(text))

    def picture(self, camera: Camera, message: Any) -> None:
        """A frame, as it was recorded where it is a JPEG or PNG."""
        data = as_bytes(message.data).tobytes() if camera.transport == 'compressed' else b''
        kind = next((kind for start, kind in STARTS.items() if data.startswith(start)), '')
        if kind:
            found = self._rerun.EncodedImage(contents=data, media_type=kind)
        else:
            found = self._rerun.Image(decode_camera(camera, message))
        self._stream.log(f'cameras/{camera.name}', found)


def _write_messages(writer: _Writer, replayed: Replay, path: Path) -> None:
    """Cameras, states, commands and words; what the node would refuse is left out."""
    contract, bag = replayed.contract, open_bag(path)
    topics = match_topics(bag, contract, replayed.options.remap)
    cameras = {camera.name: camera for camera in contract.cameras if camera.transport in STILLS}
    columns = {stream.name: measured_columns(contract, stream) for stream in contract.state_streams}
    readers = {stream.name: StateReader(stream, columns[stream.name]) for stream in contract.state_streams}
    for message in bag.messages({*topics.streams, *topics.outputs, *topics.texts}):
        if message.log_ns > replayed.end_ns:
            break
        try:
            decoded = bag.decode(message)
            writer.at(message.log_ns)
            for name in topics.streams.get(message.topic, ()):
                if name in cameras:
                    writer.picture(cameras[name], decoded)
                elif name in readers and (found := readers[name].read(decoded)) is not None:
                    writer.numbers('measured', columns[name], found[1])
            if output := topics.outputs.get(message.topic):
                writer.numbers('commanded', output.columns, read_command(decoded, output.columns).values[0])
            if message.topic in topics.texts and (text := getattr(decoded, 'text', '')):
                writer.text('instruction', text)
        except (RobotError, ValueError, RuntimeError, AssertionError):
            continue  # damaged, or refused: the report of the replay counts them


def _write_chunks(writer: _Writer, replayed: Replay) -> None:
    """Of each chunk the steps up to the next one, and what it was made for."""
    chunks = replayed.chunks
    for place, each in enumerate(chunks):
        chunk = each.planned.chunk
        last_ns = chunks[place + 1].planned.chunk.start_ns if place + 1 < len(chunks) else chunk.end_ns
        writer.at(each.planned.ready_ns)
        writer.text('chunks', f'chunk {chunk.chunk_id} for {each.instruction!r}, {each.planned.delay} steps late')
        for at_ns, row in zip(chunk.times_ns.tolist(), chunk.data_HN, strict=True):
            if at_ns < last_ns:
                writer.at(at_ns)
                writer.numbers('chunk', chunk.names, row)
