"""What is wrong with a recording, as data: counted per file, field and kind, shown in one table at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace


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

    def kinds(self) -> set[str]:
        """The kinds that occur."""
        return {problem.kind for problem in self}

    def __iter__(self) -> Iterator[Problem]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)
