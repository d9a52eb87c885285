"""The one exception of this package."""

from __future__ import annotations

from ki_common.errors import KiError


class NodeError(KiError):
    """A node, topic, parameter or peer that cannot be used; the message names it and the fix."""
