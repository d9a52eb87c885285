"""The exception of this package."""

from __future__ import annotations

from ki_common.errors import KiError


class VlaError(KiError):
    """A model, batch, token stream or bundle that does not fit; the message names the field, the value and the fix."""
