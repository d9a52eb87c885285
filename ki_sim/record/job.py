"""One episode to record, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RecordingJob:
    """One episode to record: which one, where to, and how."""

    task: str
    seed: int
    index: int
    split: str
    image_size: int
    quality: int
    path: str
    format: str
    keep_failures: bool


@dataclass(frozen=True)
class RecordingResult:
    """What became of one job: `written`, `present` (from an earlier run), or `failed` (the expert did not succeed)."""

    task: str
    seed: int
    status: str
    steps: int = 0
