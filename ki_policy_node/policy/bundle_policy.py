"""A trained bundle as the node's policy: how the chunk that is being executed is carried into the new one."""

from __future__ import annotations

import logging

from ki_policy_node.cycle.continuation import Timing, resolved
from ki_policy_node.errors import NodeError
from ki_policy_node.policy.carrying import CARRIES, carried_end
from ki_robot.actions.chunk import Matrix
from ki_robot.observation.observation import Observation
from ki_vla.engine.interface import Carry
from ki_vla.policy.inference import LoadedPolicy
from ki_vla.policy.inferred import Inferred

log = logging.getLogger(__name__)


class BundlePolicy:
    """A loaded bundle that continues chunks in the way that the planner asks for.

    Args:
        policy: Closed with this.
        timing: Whether, and how far, a chunk is continued.

    Raises:
        NodeError: the bundle cannot do what `timing` asks.
    """

    def __init__(self, policy: LoadedPolicy, timing: Timing) -> None:
        self._policy = policy
        self.policy_id, self.backend, self.contract = policy.policy_id, policy.backend, policy.contract
        self.picture_size = policy.bundle.processor.picture_size
        self.serving = policy.bundle.serving
        if 'trained' not in policy.engine.kinds:
            self.serving = self.serving.replace(max_delay=0)
        self._timing = resolved(timing, self)
        self._carry = CARRIES.get(self._timing.mode, '')
        if self._carry and self._carry not in policy.engine.kinds:
            raise NodeError(
                f'Parameter mode is {self._timing.mode}, which backend {self.backend} of {self.policy_id} cannot do; '
                'write auto or latest, or export again with --kinds plain,guided,trained.'
            )
        if self._timing.note:
            log.info('%s', self._timing.note)

    def warm_up(self) -> None:
        """Runs every static shape of the engine, in every way that will be used."""
        self._policy.warm_up(('plain', self._carry) if self._carry else ('plain',))

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        """One chunk; see `policy_types.Policy`."""
        return self._policy.infer(observation, self._carried(prefix_KN, observation, delay_steps))

    def close(self) -> None:
        """Frees the engine."""
        self._policy.close()

    def _carried(self, prefix_KN: Matrix | None, observation: Observation, delay: int) -> Carry | None:
        """The old chunk as the model would say it now."""
        if prefix_KN is None or not self._carry or not 0 < delay <= len(prefix_KN):
            return None
        end = carried_end(len(prefix_KN), delay, self.contract.horizon, self._timing.execute_steps)
        previous_PA = self._policy.bundle.processor.carried(prefix_KN, observation.state)
        return Carry(previous_PA, delay=delay, end=end, mode=self._carry)
