"""Whether a stamp is believed on arrival, and is good enough later: one set of rules for live node and recordings."""

from __future__ import annotations

from typing import overload

import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.parts import Camera, StateStream
from ki_robot.errors import Reason, Rejected
from ki_robot.messages.arrays import NS

FUTURE_TOLERANCE_NS = 50_000_000  # how far a stamp may lie ahead of its arrival: clocks of two machines


@overload
def is_too_old(age_ns: int, max_age_s: float) -> bool: ...
@overload
def is_too_old(age_ns: NDArray[np.int64], max_age_s: float) -> NDArray[np.bool_]: ...
def is_too_old(age_ns: int | NDArray[np.int64], max_age_s: float) -> bool | NDArray[np.bool_]:
    """Whether a message has become too old to act on; of an array of ages, which."""
    return age_ns > round(max_age_s * NS)


@overload
def is_out_of_step(spread_ns: int, sync_tolerance_s: float) -> bool: ...
@overload
def is_out_of_step(spread_ns: NDArray[np.int64], sync_tolerance_s: float) -> NDArray[np.bool_]: ...
def is_out_of_step(spread_ns: int | NDArray[np.int64], sync_tolerance_s: float) -> bool | NDArray[np.bool_]:
    """Whether stamps of one observation lie too far apart, oldest to newest; of an array, which."""
    return spread_ns > round(sync_tolerance_s * NS)


def check_stamp(
    spec: Camera | StateStream,
    stamp: int,
    receive_ns: int,
    last_stamp_ns: int,
    future_tolerance_ns: int = FUTURE_TOLERANCE_NS,
) -> None:
    """Refuses a message by its stamp.

    Args:
        spec: The camera or state stream that it came on.
        stamp: Its stamp in ns.
        receive_ns: When it arrived, on the clock of the stamps.
        last_stamp_ns: The stamp of the last message of this stream that was taken; 0 before the first.
        future_tolerance_ns: How far the stamp may lie ahead of its arrival.

    Raises:
        Rejected: No stamp, or one that lies in the future, does not advance, or is too old for the contract.
    """
    name = spec.name
    if stamp <= 0:
        raise Rejected(Reason.ZERO_STAMP, f'{name}: header.stamp is not set; fix the driver, or set stamp: receive.')
    if stamp > receive_ns + future_tolerance_ns:
        raise Rejected(
            Reason.FUTURE_STAMP,
            f'{name}: the stamp lies {(stamp - receive_ns) / NS:.3f} s in the future; synchronise the clocks.',
        )
    if stamp <= last_stamp_ns:
        behind = (last_stamp_ns - stamp) / NS
        raise Rejected(Reason.BACKWARD_STAMP, f'{name}: the stamp does not advance ({behind:.3f} s behind).')
    if is_too_old(receive_ns - stamp, spec.max_age_s):
        raise Rejected(
            Reason.STALE,
            f'{name}: arrived {(receive_ns - stamp) / NS:.3f} s old; max_age_s is {spec.max_age_s}.',
        )
