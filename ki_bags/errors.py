"""The error of this room."""

from __future__ import annotations

from ki_common.errors import KiError


class BagError(KiError):
    """A recording that cannot be read or written at all; the sentence names file, field and fix."""
