"""Subscriptions as a contract names them: QoS that hears every driver, and a word when one cannot be heard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind

from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Camera, StateStream

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# Best effort hears reliable publishers, too; the other way round hears nothing.
INPUT_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def joint_columns(contract: Contract, stream: StateStream) -> list[str]:
    """The state columns that `stream` feeds, in order."""
    return [column.name for column in contract.state if column.source == stream.name]


def message_type(stream: Camera | StateStream) -> Any:
    """The class of a stream's messages."""
    from nav_msgs.msg import Odometry
    from sensor_msgs.msg import CompressedImage, Image, JointState

    if isinstance(stream, Camera):
        return CompressedImage if stream.transport == 'compressed' else Image
    return JointState if stream.type == 'joint_state' else Odometry


def on_incompatible(node: Any, topic: str) -> SubscriptionEventCallbacks:
    """Logs, by topic, that a publisher is there and cannot be heard; ROS itself would be silent about it."""

    def tell(event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        node.get_logger().error(
            f'{node.resolve_topic_name(topic)}: a publisher offers an incompatible QoS ({policy}) and is not heard; '
            'set it to the QoS of this subscription (ros2 topic info -v shows both).'
        )

    return SubscriptionEventCallbacks(incompatible_qos=tell)


def hear_everybody(node: Any, kind: type, topic: str, callback: Callable[[Any], None]) -> list[Any]:
    """Subscriptions to a topic on which people and panels speak, with whatever QoS they have.

    One hears what was latched before this node came, the others every publisher that does not latch: a reliable one
    without loss, a best-effort one at all. What several of them hear reaches `callback` several times.
    """
    quiet = SubscriptionEventCallbacks(use_default_callbacks=False)  # that one of them hears nobody is no news
    kinds = (LATCHED, NEWEST, QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT))
    return [node.create_subscription(kind, topic, callback, qos, event_callbacks=quiet) for qos in kinds]
