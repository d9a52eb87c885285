"""Subscriptions as a contract names them: QoS that hears every driver, and a word when one cannot be heard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.subscription import Subscription

from ki_policy_node.common.ros import message_class
from ki_robot.contract.parts import Camera, Output, StateStream
from ki_robot.messages.states import STATE_TYPES, static_topic
from ki_robot.messages.video import VIDEO_MESSAGES

try:
    from rclpy.event_handler import SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import SubscriptionEventCallbacks

# Best effort hears reliable publishers, too; the other way round hears nothing.
INPUT_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
# Every packet of a video counts, also those that come while the node is busy.
VIDEO_QOS = QoSProfile(depth=60, reliability=ReliabilityPolicy.BEST_EFFORT)
NEWEST = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)

# Every publisher of tf_static latches its own transforms.
STATIC_QOS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def controller_nodes(node: Node, outputs: Iterable[Output]) -> dict[str, Node]:
    """For a simulated robot: a node for every controller, by the name of its output, as a controller manager has them.

    Add them to the executor of `node`, and destroy them with it.
    """
    made: dict[str, Node] = {}
    for output in outputs:
        space, _, name = str(node.resolve_topic_name(output.controller_name)).rpartition('/')
        known = next((each for each in made.values() if _is(each, space, name)), None)
        # A name given to this process on the command line is meant for the robot alone.
        made[output.name] = known or Node(
            name, context=node.context, namespace=space, use_global_arguments=False, enable_rosout=False
        )
    return made


def _is(node: Node, space: str, name: str) -> bool:
    return (node.get_namespace().rstrip('/'), node.get_name()) == (space, name)


def message_type(stream: Camera | StateStream) -> Any:
    """The class of a stream's messages.

    Raises:
        NodeError: its package is not installed, as tf2_msgs is not by pip.
    """
    from sensor_msgs.msg import CompressedImage, Image

    if isinstance(stream, Camera) and stream.transport in VIDEO_MESSAGES:
        return message_class(VIDEO_MESSAGES[stream.transport])
    if isinstance(stream, Camera):
        return CompressedImage if stream.transport == 'compressed' else Image
    return message_class(STATE_TYPES[stream.type])


def subscribe(
    node: Any, stream: Camera | StateStream, store: Callable[[Any], None], still: Callable[[Any], None]
) -> list[Any]:
    """Subscriptions to one stream of a contract, and to tf_static where it stands on that.

    Args:
        node: Whose.
        stream: What to hear.
        store: Takes a message of the stream.
        still: Takes a message of tf_static.
    """
    kind, told = message_type(stream), on_incompatible(node, stream.topic)
    made = [node.create_subscription(kind, stream.topic, store, _input_qos(stream), event_callbacks=told)]
    if isinstance(stream, StateStream) and static_topic(stream):
        made.append(node.create_subscription(kind, static_topic(stream), still, STATIC_QOS))
    return made


def _input_qos(stream: Camera | StateStream) -> QoSProfile:
    """How a stream is listened to."""
    return VIDEO_QOS if isinstance(stream, Camera) and stream.transport in VIDEO_MESSAGES else INPUT_QOS


def on_incompatible(node: Any, topic: str) -> SubscriptionEventCallbacks:
    """Logs, by topic, that a publisher is there and cannot be heard; ROS itself would be silent about it."""

    def tell(event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        node.get_logger().error(
            f'{node.resolve_topic_name(topic)}: a publisher offers an incompatible QoS ({policy}) and is not heard; '
            'set it to the QoS of this subscription (ros2 topic info -v shows both).'
        )

    return SubscriptionEventCallbacks(incompatible_qos=tell)


def with_info(callback: Callable[[Any, Mapping[str, Any]], None]) -> Callable[..., None]:
    """A subscription's callback that passes what ROS 2 tells of a message beside it; nothing, on Humble."""
    if hasattr(Subscription, 'CallbackType'):
        return lambda message, info: callback(message, info)
    return lambda message: callback(message, {})


def hear_everybody(node: Any, kind: type, topic: str, callback: Callable[..., None], depth: int = 1) -> list[Any]:
    """Subscriptions to a topic on which people and panels speak, with whatever QoS they have.

    One hears what was latched before this node came, the others every publisher that does not latch: a reliable one
    without loss, a best-effort one at all. What several of them hear reaches `callback` several times. All publishers
    share the `depth` of a subscription: with 1, the word of one may be overwritten by another's before it is read.
    """
    quiet = SubscriptionEventCallbacks(use_default_callbacks=False)  # that one of them hears nobody is no news
    reliable, latched = ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL
    kinds = (
        QoSProfile(depth=depth, reliability=reliable, durability=latched),
        QoSProfile(depth=depth, reliability=reliable),
        QoSProfile(depth=depth, reliability=ReliabilityPolicy.BEST_EFFORT),
    )
    return [node.create_subscription(kind, topic, callback, qos, event_callbacks=quiet) for qos in kinds]
