"""What is wrong with a recording, as data: counted per file, field and kind, shown in one table at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

# What to do about a kind of problem, where its sentence alone does not say.
ADVICE: dict[str, str] = {
    'absent_episode': 'copy the whole dataset',
    'action_from_state': 'record the command topics',
    'ambiguous_topic': 'say which with --remap',
    'bad_metadata': 'correct or remove that file',
    'bag_changed': 'index again',
    'bag_gone': 'bring the recording back, or index again',
    'clock_drift': 'synchronise the clock, or --trust-log-time',
    'command_age': 'max_command_age_s or commands: goals in the contract',
    'command_clock': 'synchronise the clock, or --trust-log-time',
    'count': 'copy the file again; what is there is read',
    'damaged': 'copy the file again; what lies before is read',
    'file_missing': 'copy the whole folder of the recording',
    'foreign_encoding': 'record with an rmw that speaks CDR, if it is needed',
    'frozen': 'restart the camera driver',
    'future_stamp': 'synchronise the clock, or --trust-log-time',
    'implausible_stream': 'use the contract of this robot; check units',
    'index_changed': 'remove it and index again',
    'index_lost': 'index again',
    'length': 'copy the whole dataset',
    'lfs_pointer': 'git lfs pull',
    'missing_topic': 'record it, or name it with --remap',
    'no_instruction': 'give one with --task',
    'no_key_frame': 'let the encoder send a key frame every second',
    'no_overlap': 'synchronise the clocks, or --trust-log-time',
    'other_joints': 'use the contract of this robot',
    'stale': 'look at what kept the sensor from publishing',
    'stale_commands': '--actions state, or commands: goals in the contract',
    'stream_clock_jump': 'synchronise the clock, or --trust-log-time',
    'tasks_lost': 'copy that file again, or give the instruction with --task',
    'unreadable': 'copy the file again',
    'unsynchronized': 'look at the latency of the streams',
    'wal_cut': 'copy database and -wal file again',
    'wal_unread': 'copy database and -wal file again',
    'wrong_type': 'say which topic with --remap',
    'zero_stamp': 'fix the driver, or --trust-log-time',
}
# Kinds by which something that a contract asks for was lost; others cost single messages, or cost nothing.
LOSSES = frozenset(
    [
        'ambiguous_topic',
        'bag_changed',
        'command_clock',
        'damaged',
        'empty_episode',
        'file_missing',
        'implausible_stream',
        'index_changed',
        'index_lost',
        'lfs_pointer',
        'no_overlap',
        'refused',
        'stale_commands',
        'tasks_lost',
        'unreadable',
        'wal_cut',
        'wal_unread',
        'wrong_type',
    ]
)


@dataclass(frozen=True)
class Problem:
    """One flaw, `count` times.

    Attributes:
        where: The file or folder.
        field: Topic, column or record concerned; empty when the whole file is.
        kind: A word for tables and tests, such as `truncated`.
        text: The first occurrence in one sentence.
        count: How often.
    """

    where: str
    field: str
    kind: str
    text: str
    count: int = 1

    def to_dict(self) -> dict[str, object]:
        """Plain data for JSON."""
        return asdict(self)


class Problems:
    """A counting collection: the same file, field and kind is one row, which keeps the first sentence."""

    def __init__(self, found: Iterable[Problem] = ()) -> None:
        self._rows: dict[tuple[str, str, str], Problem] = {}
        self.extend(found)

    def add(self, where: object, field: str, kind: str, text: str, count: int = 1) -> None:
        """Counts one flaw."""
        self.extend([Problem(str(where), field, kind, text, count)])

    def extend(self, found: Iterable[Problem]) -> None:
        """Counts many."""
        for problem in found:
            key = (problem.where, problem.field, problem.kind)
            known = self._rows.get(key)
            self._rows[key] = replace(known, count=known.count + problem.count) if known else problem

    def since(self, before: Problems) -> Problems:
        """What was counted after a copy was taken."""
        counts = {(each.where, each.field, each.kind): each.count for each in before}
        left = ((each, each.count - counts.get((each.where, each.field, each.kind), 0)) for each in self)
        return Problems(replace(each, count=count) for each, count in left if count > 0)

    def by_kind(self) -> Problems:
        """One row a kind, over all files and fields, for who wants to know how much is lost and not where."""
        return Problems(replace(each, where='', field='') for each in self)

    @property
    def is_loss(self) -> bool:
        """Whether something that a contract asks for was lost."""
        return bool(LOSSES & self.kinds())

    def kinds(self) -> set[str]:
        """The kinds that occur."""
        return {problem.kind for problem in self}

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)
