"""The errors of this package: one type for the room, one for a refused message."""

from __future__ import annotations

from enum import Enum

from ki_common.errors import KiError


class RobotError(KiError):
    """A contract, statistic, chunk or limit that cannot be used."""


class Reason(str, Enum):
    """Why one message was refused; the counters of a stream are kept per reason."""

    BAD_LAYOUT = 'bad_layout'
    SHORT_DATA = 'short_data'
    TOO_LARGE = 'too_large'
    UNKNOWN_ENCODING = 'unknown_encoding'
    UNDECODABLE = 'undecodable'
    NO_KEY_FRAME = 'no_key_frame'
    WRONG_SIZE = 'wrong_size'
    MISSING_NAME = 'missing_name'
    EXTRA_NAME = 'extra_name'
    OTHER_JOINTS = 'other_joints'
    DUPLICATE_NAME = 'duplicate_name'
    NON_FINITE = 'non_finite'
    IMPLAUSIBLE = 'implausible'
    ZERO_STAMP = 'zero_stamp'
    STALE = 'stale'
    FUTURE_STAMP = 'future_stamp'
    BACKWARD_STAMP = 'backward_stamp'

    def __str__(self) -> str:
        return self.value


class Rejected(RobotError):  # noqa: N818 - a verdict on one message, as Reject is on one command
    """One message that cannot be used; the stream goes on with the next one."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
