"""When the next chunk is due, and when the observation for it is taken.

Every time is passed in, on one clock: ROS time in the node, the bag's in a replay, the simulator's in an evaluation.
"""

from __future__ import annotations

from ki_policy_node.cycle.continuation import Timing
from ki_policy_node.cycle.hold_reasons import HoldReason
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract

STARVED_NS = 300_000_000  # how long a due chunk may wait for inputs that agree in time


def due_after(current: ActionChunk, timing: Timing, latency_ns: int, frame_wait_ns: int = 0) -> int:
    """When the observation for the chunk after `current` is due: early enough that `current` does not run out.

    Args:
        current: What is being executed.
        timing: How many of its steps are.
        latency_ns: What an inference takes.
        frame_wait_ns: How long its observation may wait for a camera.
    """
    step_ns = current.step_ns
    due_ns = current.start_ns + timing.execute_steps * step_ns
    if timing.mode == 'queue':  # its steps count from the seam, and the next chunk is to be there at their end
        due_ns -= max(0, latency_ns - current.frozen_prefix * step_ns)
    return min(due_ns, current.end_ns - latency_ns - frame_wait_ns - step_ns)


class Cadence:
    """A chunk is due when enough of the last one is executed, or at once when it is asked for.

    Its observation is taken as soon as every required camera has spoken since: right after the last of them, which
    spares half a frame period of age on average.

    Args:
        contract: Whose required cameras are waited for.
        timing: How many steps of a chunk are executed.
        frame_wait_ns: The longest wait for a camera.
    """

    def __init__(self, contract: Contract, timing: Timing, frame_wait_ns: int) -> None:
        self._required = tuple(camera.name for camera in contract.cameras if camera.required)
        self._timing = timing
        self._frame_wait_ns = frame_wait_ns
        self._asked_ns: int | None = None
        self._frames_ns: dict[str, int] = {}  # arrival of the newest frame of each camera

    def on_frame(self, camera: str, now_ns: int) -> None:
        """A frame has arrived."""
        self._frames_ns[camera] = now_ns

    def on_clock_jump(self, now_ns: int) -> None:
        """Arrivals on the clock before mean nothing any more."""
        self._frames_ns.clear()
        self._asked_ns = now_ns

    def ask(self, now_ns: int) -> None:
        """A chunk is due at once: a run begins, the words change, or what was executed is void."""
        if self._asked_ns is None:
            self._asked_ns = now_ns

    def hurry(self, now_ns: int) -> None:
        """As `ask`, and frames from before now will not do."""
        self._asked_ns = now_ns

    def taken(self) -> None:
        """The observation is taken."""
        self._asked_ns = None

    def due_ns(self, current: ActionChunk | None, latency_ns: int) -> int:
        """When the next observation is due; `current` is what is being executed."""
        if self._asked_ns is not None or current is None:
            return self._asked_ns or 0
        return due_after(current, self._timing, latency_ns, self._frame_wait_ns)

    def take_ns(self, due_ns: int) -> int:
        """When to take an observation that is due at `due_ns`: then, or after the longest wait for a camera."""
        spoken = all(self._frames_ns.get(camera, -1) >= due_ns for camera in self._required)
        return due_ns if spoken else due_ns + self._frame_wait_ns

    def fresh(self, due_ns: int) -> tuple[str, ...]:
        """Cameras that have spoken since."""
        return tuple(camera for camera, frame_ns in list(self._frames_ns.items()) if frame_ns >= due_ns)

    def forgives(self, reason: HoldReason, due_ns: int, now_ns: int) -> bool:
        """Whether to try again instead of holding: inputs that are only out of step may be in step a frame later."""
        return reason is HoldReason.UNSYNCHRONIZED and now_ns - due_ns < STARVED_NS
