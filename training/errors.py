"""The error of this room."""

from __future__ import annotations

from ki_common.errors import KiError


class TrainingError(KiError):
    """Data or a run that cannot go on; the sentence names file, field and fix."""
