"""What the doctor says about data: findings, and the places they are about."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

ERROR, WARNING, NOTE = 'error', 'warning', 'note'


@dataclass(frozen=True)
class StepRange:
    """Steps of one episode that a finding is about: `first` up to, not including, `end`; `episode` counts in the index.

    `recording` is the path of its recording.
    """

    recording: str
    episode: int
    first: int
    end: int


@dataclass(frozen=True)
class Finding:
    """One thing the doctor noticed: how bad, which column or stream, what, in one sentence with the fix.

    `places` are the best places to look at, the clearest first; empty where it is about all of the data.
    """

    level: str
    field: str
    kind: str
    text: str
    places: tuple[StepRange, ...] = ()


def by_weight(findings: Iterable[Finding]) -> list[Finding]:
    """Findings, the worst first."""
    rank = {ERROR: 0, WARNING: 1, NOTE: 2}
    return sorted(findings, key=lambda finding: rank[finding.level])


def worst(findings: Sequence[Finding]) -> str:
    """The level of the worst finding; empty when there is none."""
    levels = {finding.level for finding in findings}
    return next((level for level in (ERROR, WARNING, NOTE) if level in levels), '')
