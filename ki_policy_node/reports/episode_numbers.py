"""What a bag says of one episode that was driven through the node: numbers, pictures, motion.

Nothing is taken from the processes that ran: the recording alone is read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ki_bags.reader import Bag, open_bag
from ki_policy_node.executor.safety import Kind
from ki_robot.actions.chunk import ActionChunk, Matrix
from ki_robot.actions.interpolation import interpolate
from ki_robot.contract.contract import Contract
from ki_robot.contract.names import interface_of, joint_of
from ki_robot.errors import Rejected
from ki_robot.messages.arrays import stamp_ns, time_ns, to_chunk
from ki_robot.messages.images import decode_compressed, decode_image
from ki_robot.messages.video import VIDEO_MESSAGES

FILM_HZ = 5.0
STATE, EVENTS = 'chunk_executor/state', 'chunk_executor/safety_event'
APPLIED, CHUNKS, STATUS = 'chunk_executor/applied_command', 'policy_node/action_chunk', 'policy_node/status'


@dataclass
class RecordedEpisode:
    """One recording.

    Attributes:
        begin_ns: Log time of the first message.
        frames: (log time, image by camera name), uint8 (H, W, 3), at most FILM_HZ a second.
        measured: (seconds, value) of every joint of the actions, by column name.
        commanded: The executor's setpoints, the same way.
        rates_hz: Messages a second by topic, of those that come regularly.
        ages_ms: Of every chunk, from the stamp of its observation to its arrival at the recorder.
        inference_ms: As the policy node told it, once a chunk.
        seams: Largest distance, rad or m, of a chunk from the one before where it takes over.
        events: Interventions of the executor by kind.
        holds: (seconds, reason) of what stopped the robot after it had begun to move.
        lateness_ms: p99 of the executor's ticks, as it told last.
        unread: Messages that do not decode, of another version of ki_msgs, say.
    """

    begin_ns: int = 0
    seconds: float = 0.0
    messages: int = 0
    frames: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    measured: dict[str, Matrix] = field(default_factory=dict)
    commanded: dict[str, Matrix] = field(default_factory=dict)
    rates_hz: dict[str, float] = field(default_factory=dict)
    ages_ms: list[float] = field(default_factory=list)
    inference_ms: list[float] = field(default_factory=list)
    seams: list[float] = field(default_factory=list)
    events: Counter[str] = field(default_factory=Counter)
    holds: list[tuple[float, str]] = field(default_factory=list)
    lateness_ms: float | None = None
    unread: int = 0


def read_episode(path: str | Path, contract: Contract) -> RecordedEpisode:
    """Reads one bag; topics are found by the end of their names, so that a namespace does no harm.

    Raises:
        BagError: there is no readable recording.
    """
    bag = open_bag(path)
    reader = _Reader(bag, contract)
    for message in bag.messages():
        reader.take(message)
    return reader.finish()


class _Reader:
    """One pass over a bag."""

    def __init__(self, bag: Bag, contract: Contract) -> None:
        self.bag, self.contract, self.made = bag, contract, RecordedEpisode()
        self._times: dict[str, list[int]] = defaultdict(list)
        self._series: dict[str, dict[str, list[tuple[float, float]]]] = {'measured': {}, 'commanded': {}}
        self._last: ActionChunk | None = None
        self._inferred, self._running, self._shown = 0, False, -(10**18)
        self._joints = [name for name in contract.robot.action_names if interface_of(name) == 'position']
        self._cameras = {'/' + each.topic: each for each in contract.cameras}
        self._use = {
            STATE: self._state,
            EVENTS: self._event,
            APPLIED: self._applied,
            CHUNKS: self._chunk,
            STATUS: self._status,
            'diagnostics': self._diagnosed,
        } | {stream.topic: self._measured for stream in contract.state_streams if stream.type == 'joint_state'}

    def take(self, message: Any) -> None:
        """One message: counted, and read where it says something."""
        made = self.made
        made.begin_ns = made.begin_ns or message.log_ns
        made.messages += 1
        self._times[message.topic].append(message.log_ns)
        for topic, use in self._use.items():
            if message.topic.endswith('/' + topic):
                decoded = self._decoded(message)
                if decoded is not None:
                    use(decoded, message.log_ns)
                return
        camera = next((each for topic, each in self._cameras.items() if message.topic.endswith(topic)), None)
        if camera is not None:
            self._picture(camera, message)

    def finish(self) -> RecordedEpisode:
        """What remains to be counted."""
        made = self.made
        made.seconds = (max(times[-1] for times in self._times.values()) - made.begin_ns) / 1e9 if self._times else 0.0
        for topic, times in self._times.items():
            span_s = (times[-1] - times[0]) / 1e9
            if len(times) > 10 and span_s > 0.5 * made.seconds:
                made.rates_hz[topic] = (len(times) - 1) / span_s
        for kind, series in self._series.items():
            setattr(made, kind, {name: np.array(rows) for name, rows in series.items()})
        return made

    def _decoded(self, message: Any) -> Any:
        try:
            return self.bag.decode(message)
        except Exception:  # damaged CDR raises nearly anything
            self.made.unread += 1
            return None

    def _since(self, log_ns: int) -> float:
        return (log_ns - self.made.begin_ns) / 1e9

    def _picture(self, camera: Any, message: Any) -> None:
        frames = self.made.frames
        if camera.transport in VIDEO_MESSAGES:
            return  # every packet would have to be decoded for a strip of thumbnails
        if camera.name == self.contract.cameras[0].name:
            if message.log_ns - self._shown < 1e9 / FILM_HZ:
                return
            self._shown = message.log_ns
            frames.append((message.log_ns, {}))
        if not frames or camera.name in frames[-1][1]:
            return
        decoded = self._decoded(message)
        if decoded is None:
            return
        decode = decode_compressed if camera.transport == 'compressed' else decode_image
        try:
            frames[-1][1][camera.name] = decode(decoded)
        except Rejected:
            return

    def _keep(self, kind: str, message: Any, log_ns: int, suffix: str) -> None:
        positions = dict(zip(message.name, message.position, strict=False))
        at = (stamp_ns(message.header) or log_ns) - self.made.begin_ns
        for name in self._joints:
            key = name if suffix else joint_of(name)
            if key in positions:
                self._series[kind].setdefault(name, []).append((at / 1e9, positions[key]))

    def _measured(self, message: Any, log_ns: int) -> None:
        self._keep('measured', message, log_ns, '')

    def _applied(self, message: Any, log_ns: int) -> None:
        self._keep('commanded', message, log_ns, 'by column')

    def _chunk(self, message: Any, log_ns: int) -> None:
        try:
            chunk = to_chunk(message)
        except Rejected:
            return
        self.made.ages_ms.append((log_ns - chunk.observation_ns) / 1e6)
        last, self._last = self._last, chunk
        if last is not None and last.names == chunk.names and last.start_ns < chunk.start_ns < last.end_ns:
            index = [index for index, name in enumerate(chunk.names) if interface_of(name) == 'position']
            before, _ = interpolate(last, chunk.start_ns, 'linear')
            self.made.seams.append(float(np.abs(chunk.data_HN[0, index] - before[index]).max()))

    def _status(self, message: Any, _: int) -> None:
        taken_ns = time_ns(message.inference_time)
        if message.chunks_published != self._inferred and taken_ns:
            self._inferred = message.chunks_published
            self.made.inference_ms.append(taken_ns / 1e6)

    def _event(self, message: Any, _: int) -> None:
        known = {kind.value: kind.name.lower().replace('_', ' ') for kind in Kind}
        self.made.events[known.get(message.kind, f'kind {message.kind}')] += 1

    def _state(self, message: Any, log_ns: int) -> None:
        state, _, reason = message.data.partition(': ')
        self._running = self._running or state == 'run'
        if self._running and state in ('hold', 'fault'):
            self.made.holds.append((self._since(log_ns), reason or state))

    def _diagnosed(self, message: Any, _: int) -> None:
        for line in message.status:
            if line.name.endswith('chunk_executor: commands'):
                found = {each.key: each.value for each in line.values}.get('lateness p99 [ms]')
                self.made.lateness_ms = float(found) if found is not None else self.made.lateness_ms
