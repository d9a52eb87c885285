"""The one exception type of the simulator."""

from __future__ import annotations

from ki_common.errors import KiError


class SimError(KiError):
    """A scene, task, command or recording that cannot be had; the message names the field, the value and the fix."""
