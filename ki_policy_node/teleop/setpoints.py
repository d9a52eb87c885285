"""A human's setpoints on the topic `teleop`: chunks of a single step, of the columns that are commanded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from ki_msgs.msg import ActionChunk as ActionChunkMessage

from ki_policy_node.common.streams import NEWEST
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract
from ki_robot.messages.arrays import from_chunk


class SetpointPublisher:
    """Sends setpoints of some columns.

    Args:
        node: Publishes.
        contract: The robot.
        driver: Who drives, as the executor and recordings name it.
    """

    def __init__(self, node: Any, contract: Contract, driver: str) -> None:
        self._node, self._step_ns, self._driver, self._count = node, contract.step_ns, driver, 0
        self._publisher = node.create_publisher(ActionChunkMessage, 'teleop', NEWEST)

    def send(self, values: Mapping[str, float]) -> None:
        """One setpoint, SI, by column."""
        if not values:
            return
        now_ns = max(1, self._node.get_clock().now().nanoseconds)
        self._count += 1
        row = np.array([list(values.values())], np.float64)
        chunk = ActionChunk(now_ns, self._step_ns, tuple(values), row, now_ns, self._count, policy_id=self._driver)
        self._publisher.publish(from_chunk(chunk, ActionChunkMessage()))
