"""A trained bundle as the node's policy: how the chunk that is being executed is carried into the new one."""

from __future__ import annotations

import logging

from ki_policy_node.policy.continuation import Timing
from ki_robot.actions.chunk import Matrix
from ki_robot.observation.observation import Observation
from ki_vla.engine.interface import Carry
from ki_vla.policy.inference import LoadedPolicy
from ki_vla.policy.inferred import Inferred

log = logging.getLogger(__name__)


class BundlePolicy:
    """A loaded bundle that continues chunks in the way it was made for.

    Args:
        policy: Closed with this.
        timing: Whether, and how far, a chunk is continued.
    """

    def __init__(self, policy: LoadedPolicy, timing: Timing) -> None:
        self._policy, self._timing = policy, timing
        self.policy_id, self.backend, self.contract = policy.policy_id, policy.backend, policy.contract
        self._carry, self._beyond = self._way_to_carry(), False

    def warm_up(self) -> None:
        """Runs every static shape of the engine, in every way that will be used."""
        self._policy.warm_up(('plain', self._carry) if self._carry else ('plain',))

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        """One chunk; see `policy_types.Policy`."""
        return self._policy.infer(observation, self._carried(prefix_KN, observation, delay_steps))

    def close(self) -> None:
        """Frees the engine."""
        self._policy.close()

    def _way_to_carry(self) -> str:
        """`trained` for a model trained with delays, else `guided` where the engine has gradients, else none."""
        if self._timing.mode != 'rtc':
            return ''
        for kind in ('trained', 'guided') if self._policy.bundle.serving.max_delay else ('guided',):
            if kind in self._policy.engine.kinds:
                return kind
        return ''

    def _carried(self, prefix_KN: Matrix | None, observation: Observation, delay: int) -> Carry | None:
        """The old chunk as the model would say it now; its end is where nothing is pulled any more, H - s."""
        if prefix_KN is None or not self._carry:
            return None
        rows = len(prefix_KN)
        end = min(rows, max(delay, self.contract.horizon - self._timing.execute_steps))
        if delay > rows or (self._carry == 'trained' and not self._is_trained_for(delay)):
            return None
        previous_PA = self._policy.bundle.processor.carried(prefix_KN, observation.state)
        return Carry(previous_PA, delay=delay, end=end, mode=self._carry)

    def _is_trained_for(self, delay: int) -> bool:
        """Whether the model can continue over a delay; says so when it begins not to, and when it can again."""
        most = self._policy.bundle.serving.max_delay
        beyond = delay > most
        if beyond != self._beyond:
            self._beyond = beyond
            if beyond:
                log.warning(
                    'The delay of %d steps is beyond the %d that %s was trained to continue over (serving.max_delay): '
                    'chunks are not continued but spliced, as in mode latest.', delay, most, self.policy_id,
                )  # fmt: skip
            else:
                log.warning('The delay is within the %d trained steps again: chunks are continued.', most)
        return 0 < delay <= most
