"""Progress of long work: a bar on a terminal, a line for every tenth in a log.

All of it on stderr, so that what a command prints stays clean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressLine:
    """One bar; `advance` and `to` fit where a callback is asked for."""

    def __init__(self, bar: Progress, task: TaskID, what: str) -> None:
        self._bar, self._task, self._what = bar, task, what
        self._told = 0

    def advance(self, *_: Any) -> None:
        """One more is done; what was done does not matter."""
        self.to(round(self._bar.tasks[self._task].completed) + 1)

    def add(self, count: int) -> None:
        """So many more are done."""
        self.to(round(self._bar.tasks[self._task].completed) + count)

    def to(self, done: int, total: int | None = None, name: str = '') -> None:
        """`done` are done; of how many, and which one is in hand, if that is new."""
        self._bar.update(self._task, completed=done, total=total, name=Path(name).name)
        total = round(self._bar.tasks[self._task].total or 0)
        tenth = 10 * done // total if total else 0
        if tenth > self._told and not self._bar.console.is_terminal:
            self._told = tenth
            self._bar.console.print(f'{self._what}: {done} of {total}', highlight=False)


@contextmanager
def progress(what: str, total: int | None = None) -> Iterator[ProgressLine]:
    """A bar for the length of a `with` block; without `total` until `ProgressLine.to` names one."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, soft_wrap=True)
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn('{task.fields[name]}'),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        yield ProgressLine(bar, bar.add_task(what, total=total, name=''), what)
