"""Whether the way to the robot is clear: the right controllers listen, are active, and nobody else speaks.

A controller is a ROS node of its own below its controller manager; only its own subscription counts as listening, not
that of a recorder or of `ros2 topic echo`. Its subscription tells when it comes back: a restarted controller has a new
one, and the robot may stand elsewhere by then. Where the message packages of ros2_control are installed, the controller
manager also says which controllers are active, and a controller's own state topic whether it still runs.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy

from ki_policy_node.executor.outputs import ControllerOutput
from ki_robot.contract.contract import Contract

SILENT_S = 0.3  # of a controller's state topic, which comes 50 times a second where nobody has set it otherwise
SILENT_PERIODS = 4
ASK_S = 0.25  # between two questions to a controller manager that does not tell by itself
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@dataclass(frozen=True)
class GraphFinding:
    """What a look at the graph has found: why nothing may be commanded, and how many others command."""

    blocked: str = ''
    strangers: int = 0


class ActivityTable:
    """Which controllers of one controller manager are active, as far as it says; names as it knows them."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}

    def take_activity(self, message: Any) -> None:
        """controller_manager_msgs/ControllerManagerActivity: `controllers`, each with `name` and `state.label`."""
        self._states = {each.name: each.state.label for each in message.controllers}

    def take_list(self, response: Any) -> None:
        """The answer of controller_manager_msgs/ListControllers: `controller`, each with `name` and `state`."""
        self._states = {each.name: each.state for each in response.controller}

    def why_not_active(self, name: str) -> str:
        """Why a controller takes no commands; empty when it is active, or not one of this manager's."""
        state = self._states.get(name, 'active')
        if state == 'active':
            return ''
        return f'The controller {name} is {state}; activate it: ros2 control switch_controllers --activate {name}.'


class ControllerWatch:
    """Looks at the controllers of a contract's outputs, and at who else is on its topics.

    Args:
        node: The executor.
        contract: Its streams must have one publisher each, unless it says otherwise.
        outputs: What is commanded.
        exclusive: Whether another publisher on a command topic blocks.
        needs_controllers: Whether an absent or inactive controller blocks.
    """

    def __init__(
        self,
        node: Any,
        contract: Contract,
        outputs: Sequence[ControllerOutput],
        exclusive: bool,
        needs_controllers: bool,
    ) -> None:
        self._node, self._contract, self._outputs = node, contract, outputs
        self._exclusive, self._needs_controllers = exclusive, needs_controllers
        self._known: dict[str, frozenset[bytes]] = {}
        self._managers: dict[str, _Manager] = {}
        self._state_topics: dict[str, _StateTopic] = {}
        if needs_controllers:
            for output in outputs:
                full = self._controller_of(output)
                space = full.rpartition('/')[0]
                if space not in self._managers:
                    self._managers[space] = _Manager(node, f'{space}/controller_manager')
                self._state_topics[full] = _StateTopic(node, f'{full}/controller_state')

    def look(self) -> GraphFinding:
        """What stands in the way now; to be called ten times a second, in the thread of the node's callbacks."""
        if crowd := self._crowded_stream():
            return GraphFinding(crowd)
        for output in self._outputs:
            topic = self._node.resolve_topic_name(output.spec.topic)
            strangers = self._node.count_publishers(topic) - 1 if output.publisher is not None else 0
            if self._exclusive and strangers > 0:
                return GraphFinding(
                    f'Somebody else publishes on {topic}; end it, or give this robot a namespace.', strangers
                )
            if self._needs_controllers and (why := self._why_not(output, topic)):
                return GraphFinding(why)
        return GraphFinding()

    def close(self) -> None:
        """Ends the subscriptions."""
        for manager in self._managers.values():
            manager.close()
        for topic in self._state_topics.values():
            topic.close()

    def _controller_of(self, output: ControllerOutput) -> str:
        return str(self._node.resolve_topic_name(output.spec.controller_name))

    def _why_not(self, output: ControllerOutput, topic: str) -> str:
        full = self._controller_of(output)
        space, _, name = full.rpartition('/')
        if output.publisher is None:
            if not output.heard():
                return f'Nobody serves the action {topic}; start or activate the controller {name}.'
        else:
            listeners = self._node.get_subscriptions_info_by_topic(topic)
            own = frozenset(bytes(each.endpoint_gid) for each in listeners if full_name(each) == full)
            before, self._known[full] = self._known.get(full, frozenset()), own
            if not own:
                others = ', '.join(sorted({full_name(each) for each in listeners}))
                heard = f'; only {others} listens there, name it in the contract if it is meant' if others else ''
                return f'The controller {full} does not listen to {topic}{heard}; start or activate it.'
            if before and own != before:
                return f'The controller {full} has been restarted.'
        if why := self._managers[space].activity.why_not_active(name):
            return why
        return self._state_topics[full].why_silent(name)

    def _crowded_stream(self) -> str:
        meant = Counter(stream.topic for stream in self._contract.state_streams)
        for stream in self._contract.state_streams:
            if stream.publishers == 'one':
                topic = self._node.resolve_topic_name(stream.topic)
                speakers = self._node.get_publishers_info_by_topic(topic)
                if len(speakers) > meant[stream.topic]:
                    names = ', '.join(sorted(map(full_name, speakers)))
                    return (
                        f'{len(speakers)} publishers measure the robot on {topic}: {names}; end all but '
                        f'{meant[stream.topic] if meant[stream.topic] > 1 else "one"}, or write publishers: any for '
                        f'{stream.name} in the contract.'
                    )
        return ''


class _Manager:
    """What one controller manager says of its controllers: on its own, or asked again and again."""

    def __init__(self, node: Any, name: str) -> None:
        self.activity = ActivityTable()
        self._node = node
        self._subscription: Any = None
        self._client: Any = None
        messages, services = _module('controller_manager_msgs.msg'), _module('controller_manager_msgs.srv')
        if hasattr(messages, 'ControllerManagerActivity'):
            kind, topic = messages.ControllerManagerActivity, f'{name}/activity'
            self._subscription = node.create_subscription(kind, topic, self.activity.take_activity, LATCHED)
        if services is not None:
            self._request = services.ListControllers.Request
            self._client = node.create_client(services.ListControllers, f'{name}/list_controllers')
            self._timer = node.create_timer(ASK_S, self._ask)

    def _ask(self) -> None:
        if self._client.service_is_ready():
            self._client.call_async(self._request()).add_done_callback(
                lambda done: self.activity.take_list(done.result())
            )

    def close(self) -> None:
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
        if self._client is not None:
            self._node.destroy_timer(self._timer)
            self._node.destroy_client(self._client)


class _StateTopic:
    """The state that a controller publishes while it is active; one that was never heard proves nothing."""

    def __init__(self, node: Any, topic: str) -> None:
        self._node, self._topic, self._heard_s, self._period_s = node, topic, 0.0, 0.0
        self._subscription: Any = None

    def why_silent(self, name: str) -> str:
        if self._subscription is None:
            self._listen()
            return ''
        silent_s = time.monotonic() - self._heard_s
        if not self._heard_s or silent_s <= max(SILENT_S, SILENT_PERIODS * self._period_s):
            return ''
        return f'The controller {name} has said nothing on {self._topic} for {silent_s:.1f} s; is it active?'

    def _listen(self) -> None:
        known: Mapping[str, list[str]] = dict(self._node.get_topic_names_and_types())
        types = known.get(self._topic, [])
        package, _, kind = types[0].partition('/msg/') if types else ('', '', '')
        message = getattr(_module(f'{package}.msg') if package in STATE_PACKAGES else None, kind, None)
        if message is not None:
            qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
            self._subscription = self._node.create_subscription(message, self._topic, self._heard, qos, raw=True)

    def _heard(self, _: bytes) -> None:
        now_s = time.monotonic()
        if self._heard_s:
            self._period_s = now_s - self._heard_s
        self._heard_s = now_s

    def close(self) -> None:
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)


STATE_PACKAGES = ('control_msgs',)  # no module is imported because a type on the network names it


def _module(name: str) -> Any:
    """A message package of ros2_control; None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def full_name(endpoint: Any) -> str:
    """Namespace and name of the node behind an endpoint of the graph."""
    return f'{endpoint.node_namespace.rstrip("/")}/{endpoint.node_name}'
