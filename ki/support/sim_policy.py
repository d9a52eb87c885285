"""The node's policy cycle on the simulator's clock: `ki eval sim` in one process, without ROS.

Chunks are planned, joined and dropped as on a robot; only time stands still while the policy thinks, and passes by
`delay_steps` afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ki_robot.observation.observation import NotReady, Observation, StreamProblem

if TYPE_CHECKING:
    from ki_policy_node.cycle.continuation import Timing
    from ki_policy_node.cycle.policy_cycle import Made
    from ki_policy_node.cycle.policy_types import Policy
    from ki_sim.world.world import SimObservation

Row = NDArray[np.float64]


def open_sim_policy(
    bundle: Path, backend: str, seed: int, mode: str, execute_steps: int, delay_steps: int
) -> ClosedLoopPolicy:
    """A bundle for the simulated robot.

    Args:
        bundle: Its folder.
        backend: auto, torch, onnx or tensorrt.
        seed: Of the noise.
        mode: How chunks follow each other.
        execute_steps: Steps of a chunk after which the next is planned.
        delay_steps: How many steps an inference is thought to take.

    Raises:
        KiError: the bundle cannot be opened, or the timing does not fit its horizon.
    """
    from ki_policy_node.cycle.continuation import Timing
    from ki_policy_node.policy.backends import Wanted, open_policy
    from ki_robot.contract.contract import load_contract
    from ki_sim.record.sim_bags import ROBOT
    from ki_vla.policy.inference import SEED_STRIDE

    timing = Timing(mode, execute_steps)
    # A stamp is above 0, and the noise of a stamp is that of a stride later under the seed before: an episode that
    # begins one stride after 0 has the noise of its own times.
    policy = open_policy(
        Wanted(backend, str(bundle), seed=seed - 1, allow_untrained=True), load_contract(ROBOT), timing
    )
    return ClosedLoopPolicy(policy, timing, delay_steps, begin_ns=SEED_STRIDE)


class SimObservations:
    """What the simulator shows, as the policy cycle asks for it: always complete, rendered only when it is looked at.

    Args:
        begin_ns: The cycle's time at which an episode begins.
    """

    def __init__(self, begin_ns: int) -> None:
        self.epoch = 0
        self.sense: Callable[[], SimObservation] | None = None
        self._begin_ns = begin_ns

    def sample(self, now_ns: int) -> Observation | NotReady:
        """The robot and its cameras now; the words are those of the episode."""
        assert self.sense is not None
        sensed = self.sense()
        stamp_ns = self._begin_ns + sensed.time_ns
        stamps = dict.fromkeys(sensed.images, stamp_ns)
        return Observation(stamp_ns, sensed.images, stamps, sensed.state, stamp_ns, sensed.instruction)

    def problems(self, now_ns: int) -> tuple[StreamProblem, ...]:
        """None ever."""
        return ()

    def decode(self, names: Iterable[str]) -> None:
        """Nothing is encoded."""

    def set_instruction(self, text: str, instruction_id: str = '') -> None:
        """The words come with every observation."""

    def flush(self) -> None:
        """Nothing is kept."""


class ClosedLoopPolicy:
    """A policy of `ki_sim.evaluate.closed_loop`: one row of commands a control step, from the node's policy cycle.

    Args:
        policy: Of the simulated robot.
        timing: How its chunks follow each other.
        delay_steps: How many control steps an inference is thought to take; the first chunk of an episode is awaited.
        begin_ns: The cycle's time at which an episode begins; above 0, as every stamp.
    """

    def __init__(self, policy: Policy, timing: Timing, delay_steps: int = 0, begin_ns: int = 1) -> None:
        from ki_policy_node.cycle.continuation import resolved
        from ki_policy_node.errors import NodeError

        horizon = policy.contract.horizon
        if delay_steps >= horizon:
            raise NodeError(
                f'--delay-steps is {delay_steps}; a chunk of {policy.policy_id} has {horizon} steps, and would be past '
                f'when it is there. Write at most {horizon - 1}.'
            )
        self._policy, self.timing = policy, resolved(timing, policy)
        self._delay_ns = delay_steps * policy.contract.step_ns
        self._begin_ns = begin_ns
        self.policy_id = policy.policy_id
        self.reset()

    def reset(self) -> None:
        """An episode begins; nothing of the one before is remembered."""
        from ki_policy_node.cycle.continuation import Planner
        from ki_policy_node.cycle.policy_cycle import PolicyCycle

        self._scene = SimObservations(self._begin_ns)
        planner = Planner(self._policy, self.timing)
        self._cycle = PolicyCycle(self._policy.contract, self._scene, planner, frame_wait_ns=0)
        self._cycle.begin(self._begin_ns)
        self._coming: tuple[int, Made] | None = None

    def next_row(self, time_ns: int, observe: Callable[[], SimObservation]) -> Row | None:
        """The commands (N,) in force at an episode's time; None while the robot is to stand still.

        Raises:
            SimError: the policy failed as often as ends a run of the node.
        """
        from ki_policy_node.cycle.policy_cycle import Ready
        from ki_sim.errors import SimError

        now_ns = self._begin_ns + time_ns
        self._scene.sense = observe
        self._arrive(now_ns)
        self._cycle.watch(now_ns)
        if self._coming is None:
            found = self._cycle.look(now_ns)
            if isinstance(found, Ready):
                moves = self._cycle.planner.current is not None
                arrival_ns = now_ns + (self._delay_ns if moves else 0)
                self._coming = arrival_ns, self._cycle.plan(found, lambda: arrival_ns)
                self._arrive(now_ns)
        if self._cycle.fault:
            raise SimError(self._cycle.fault)
        chunk = self._cycle.planner.current
        return None if chunk is None else chunk.data_HN[chunk.index_at(now_ns)]

    def _arrive(self, now_ns: int) -> None:
        """What was being made is there, if its time has come."""
        if self._coming is not None and self._coming[0] <= now_ns:
            made, self._coming = self._coming[1], None
            self._cycle.commit(made, now_ns)

    def close(self) -> None:
        """Frees the engine."""
        self._policy.close()
