"""A policy that runs on another machine as the node's policy; while its server does not answer, the robot holds."""

from __future__ import annotations

import logging
from typing import Any

from ki_policy_node.cycle.continuation import Timing, resolved
from ki_policy_node.cycle.policy_types import UnreachableError
from ki_policy_node.errors import NodeError
from ki_policy_node.policy.carrying import CARRIES, carried_end
from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import Observation
from ki_vla.policy.inferred import Inferred
from ki_vla.remote.client import LostServerError, RemotePolicy
from ki_vla.remote.remote_settings import RemoteSettings

log = logging.getLogger(__name__)


class RemoteNodePolicy:
    """Asks a server of `ki serve` for chunks.

    Args:
        settings: Where it is.
        robot: What the policy must fit; None takes the policy's own contract.
        timing: Whether, and how far, a chunk is continued.

    Raises:
        NodeError: the server's policy is for another robot, or cannot do what `timing` asks.
        VlaError: the server cannot be reached, or is of another kind.
    """

    def __init__(self, settings: RemoteSettings, robot: Contract | None, timing: Timing) -> None:
        self._remote = RemotePolicy(settings)
        try:
            self._take(robot, timing)
        except NodeError:
            self._remote.close()
            raise

    def _take(self, robot: Contract | None, timing: Timing) -> None:
        remote = self._remote
        self.policy_id, self.backend, self.contract = remote.policy_id, remote.backend, remote.contract
        found = [] if robot is None else self.contract.mismatches(robot)
        if robot is not None and found:
            raise NodeError(f'Policy {self.policy_id} does not fit robot {robot.name}: {"; ".join(found)}.')
        self.serving, self.picture_size = remote.serving, remote.picture_size
        if 'trained' not in remote.kinds:
            self.serving = self.serving.replace(max_delay=0)
        self._timing = resolved(timing, self)
        self._carry = CARRIES.get(self._timing.mode, '')
        if self._carry and self._carry not in remote.kinds:
            raise NodeError(
                f'Parameter mode is {self._timing.mode}, which the server of {self.policy_id} cannot do; write auto or '
                'latest.'
            )
        if self._timing.note:
            log.info('%s', self._timing.note)

    def warm_up(self) -> None:
        """The server is warm: it warms up before it listens."""

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        """One chunk; see `policy_types.Policy`.

        Raises:
            UnreachableError: the server does not answer; the next call asks it again.
        """
        try:
            return self._remote.infer(observation, self._carried(prefix_KN, delay_steps))
        except LostServerError as error:
            raise UnreachableError(str(error)) from error

    def close(self) -> None:
        """Ends the connection."""
        self._remote.close()

    def _carried(self, prefix_KN: Matrix | None, delay: int) -> dict[str, Any] | None:
        """The old chunk, which the server's processor says anew."""
        if prefix_KN is None or not self._carry or not 0 < delay <= len(prefix_KN):
            return None
        end = carried_end(len(prefix_KN), delay, self.contract.horizon, self._timing.execute_steps)
        return {'actions': prefix_KN, 'delay': delay, 'end': end, 'mode': self._carry}
