"""What a policy is to the node, and what may be wrong with its answer."""

from __future__ import annotations

from typing import Protocol

from ki_policy_node.errors import NodeError
from ki_robot.actions.chunk import Matrix
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import Observation
from ki_vla.policy.inferred import Inferred
from ki_vla.policy.serving import Serving


class Policy(Protocol):
    """A policy as the node sees it. All calls come from one thread."""

    policy_id: str
    backend: str
    contract: Contract
    picture_size: int | None
    """Of the square that it is shown, where it was trained on reduced JPEGs (`Processing.jpeg_decode`); None: pictures
    are decoded at their size."""
    serving: Serving
    """What the node does with it unless its parameters say otherwise; max_delay is 0 for one that continues nothing."""

    def warm_up(self) -> None:
        """Runs often enough that the next inference is as fast as any."""
        ...

    def infer(self, observation: Observation, prefix_KN: Matrix | None, delay_steps: int, epoch: int) -> Inferred:
        """One chunk.

        Args:
            observation: What the robot sees and where it is.
            prefix_KN: The chunk that is being executed, absolute, at the times of the new chunk's first K steps; its
                first `delay_steps` rows will have been executed when the new chunk is there. None when nothing is
                executed.
            delay_steps: How many of these steps the new chunk is to repeat and go on from: what the inference is
                expected to take. 0: the chunk is not to be continued.
            epoch: Changes with the instruction, the clock and the run; state kept from another epoch is void.
        """
        ...

    def close(self) -> None:
        """Frees the engine."""
        ...


class InvalidActionError(NodeError):
    """The policy returned something that no robot may execute."""


class UnreachableError(NodeError):
    """The policy cannot be asked now: it runs on another machine, which does not answer."""


class TooLateError(NodeError):
    """The chunk was past before it was there."""
