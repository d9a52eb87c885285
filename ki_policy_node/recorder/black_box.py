"""The black box: the last seconds of every topic, kept in memory and written as a bag when something has gone wrong."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from ki_msgs.msg import PolicyStatus, SafetyEvent
from rclpy.node import Node

from ki_bags.bag_metadata import METADATA
from ki_bags.errors import BagError
from ki_bags.writer import BagWriter
from ki_policy_node.recorder.episode_writer import RecordedTopic
from ki_policy_node.recorder.parameter_snapshot import ParameterSnapshot
from ki_policy_node.recorder.settings import RecorderSettings

AFTERMATH_S = 2.0  # of what follows a fault is in its black box, too
SNAPSHOT_S = 0.5  # in which the nodes answer for their parameters


@dataclass(frozen=True)
class KeptMessage:
    """One serialized message, with the steady time at which it came [s]."""

    topic: RecordedTopic
    log_ns: int
    data: bytes
    publish_ns: int
    at_s: float


@dataclass(frozen=True)
class _Due:
    at_s: float
    why: str
    path: Path


class Ring:
    """The messages of the last `seconds`, at most `max_bytes` of them: the oldest go first."""

    def __init__(self, seconds: float, max_bytes: int) -> None:
        self._seconds, self._max_bytes = seconds, max_bytes
        self._kept: deque[KeptMessage] = deque()
        self.size = 0

    def add(self, message: KeptMessage) -> None:
        """Takes a message, and lets go of what is too old or too much."""
        self._kept.append(message)
        self.size += len(message.data)
        while self.size > self._max_bytes or self._kept[0].at_s < message.at_s - self._seconds:
            self.size -= len(self._kept.popleft().data)
            if not self._kept:
                return

    def messages(self) -> list[KeptMessage]:
        """What is kept, oldest first."""
        return list(self._kept)


def write_black_box(path: Path, messages: Iterable[KeptMessage], custom: dict[str, str], compression: str) -> Path:
    """Writes messages as a bag that everything here reads.

    Raises:
        BagError: The folder cannot be made, or the disk takes no more.
    """
    with BagWriter(path, compression, custom=custom) as bag:
        for each in messages:
            topic = each.topic
            bag.add_topic(topic.name, topic.type, topic.definition, topic.hash, topic.qos)
            bag.write(topic.name, each.log_ns, each.data, each.publish_ns)
    return path


class BlackBox:
    """Keeps the last seconds, and writes them at a fault, an e-stop or a takeover, or when asked to.

    The bag has the parameters of policy node and executor and the name of the policy in its metadata: `ki_black_box`
    (why), `ki_policy_id`, `ki_parameters` (JSON).

    Args:
        node: The recorder; the policy node and the executor are in its namespace.
        settings: Of the recorder.
    """

    def __init__(self, node: Node, settings: RecorderSettings) -> None:
        self._settings = settings
        self._log = node.get_logger()
        self.folder = Path(settings.black_box_folder).expanduser()
        self._ring = Ring(settings.black_box + AFTERMATH_S, settings.black_box_mib << 20)
        self._due: _Due | None = None
        self._policy_id, self._policy_failed = '', False
        self._snapshot = ParameterSnapshot(node, ('policy_node', 'chunk_executor'))
        self._writing: list[threading.Thread] = []
        node.create_subscription(SafetyEvent, 'chunk_executor/safety_event', self._on_safety_event, 100)
        node.create_subscription(PolicyStatus, 'policy_node/status', self._on_policy_status, 1)

    @property
    def size(self) -> int:
        """What is kept in memory [bytes]."""
        return self._ring.size

    def hear(self, message: KeptMessage) -> None:
        """Keeps a message."""
        self._ring.add(message)

    def request(self) -> Path:
        """Writes what is kept, in a moment; the folder that it will be."""
        return self._alarm('request', 'asked for', SNAPSHOT_S)

    def watch(self, latched: Iterable[tuple[RecordedTopic, bytes, int]]) -> None:
        """Begins to write what is due; `latched` messages stand at the beginning of the bag."""
        if self._due is not None and time.monotonic() >= self._due.at_s:
            due, self._due = self._due, None
            self._save(due, latched)

    def close(self, latched: Iterable[tuple[RecordedTopic, bytes, int]]) -> None:
        """Waits until all that was due is on disk."""
        if self._due is not None:
            self._save(self._due, latched)
        for thread in self._writing:
            thread.join()

    def _on_safety_event(self, event: SafetyEvent) -> None:
        if event.kind == SafetyEvent.KIND_ESTOP:
            self._alarm('estop', event.message)
        elif event.severity == SafetyEvent.SEVERITY_FAULT:
            self._alarm('fault', event.message)
        elif event.kind == SafetyEvent.KIND_TAKEOVER:
            self._alarm('takeover', event.message)

    def _on_policy_status(self, status: PolicyStatus) -> None:
        self._policy_id = status.policy_id or self._policy_id
        failed = status.state == PolicyStatus.STATE_FAULT
        if failed and not self._policy_failed:
            self._alarm('fault', status.message)
        self._policy_failed = failed

    def _alarm(self, kind: str, why: str, wait_s: float = AFTERMATH_S) -> Path:
        """One is due, a little later: what follows belongs to it. More trouble meanwhile is in the same one."""
        if self._due is None:
            self._due = _Due(time.monotonic() + wait_s, f'{kind}: {why}', self._path_for(kind))
            self._snapshot.ask()
        return self._due.path

    def _path_for(self, kind: str) -> Path:
        """A new name, by the time and the reason: 20261128T091233_fault."""
        stem = f'{datetime.now(timezone.utc):%Y%m%dT%H%M%S}_{kind}'
        taken = {path.name.partition('.')[0] for path in self.folder.glob(f'{stem}*')}
        return self.folder / next(
            each for each in (stem, *(f'{stem}_{n}' for n in range(1, 1000))) if each not in taken
        )

    def _save(self, due: _Due, latched: Iterable[tuple[RecordedTopic, bytes, int]]) -> None:
        kept = self._ring.messages()
        first_ns = kept[0].log_ns if kept else time.time_ns()
        messages = [KeptMessage(topic, first_ns, data, sent_ns, 0.0) for topic, data, sent_ns in latched] + kept
        custom = {
            'ki_black_box': due.why,
            'ki_policy_id': self._policy_id,
            'ki_parameters': json.dumps(self._snapshot.values, default=list, sort_keys=True),
        }
        thread = threading.Thread(target=self._write, args=(due.path, messages, custom), name='black_box')
        self._writing = [each for each in self._writing if each.is_alive()] + [thread]
        thread.start()

    def _write(self, path: Path, messages: list[KeptMessage], custom: dict[str, str]) -> None:
        """In a thread of its own: the recorder does not wait for the disk."""
        try:
            write_black_box(path, messages, custom, self._settings.compression)
            self._log.warning(f'black box: {path}, {len(messages)} messages; {custom["ki_black_box"]}')
        except (BagError, OSError) as error:
            self._log.error(f'the black box could not be written: {error}')
            return
        whole = sorted(each for each in self.folder.iterdir() if (each / METADATA).is_file())
        for old in whole[: -self._settings.black_box_keep]:
            shutil.rmtree(old, ignore_errors=True)
