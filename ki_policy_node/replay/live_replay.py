"""A bag played over DDS into a running policy node, on the bag's clock, and the chunks that it publishes meanwhile."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ki_bags.reader import Bag, open_bag
from ki_policy_node.common import ros
from ki_policy_node.common.service_calls import ServiceCalls
from ki_policy_node.errors import NodeError
from ki_policy_node.replay import player
from ki_policy_node.replay.bag_topics import match_topics
from ki_policy_node.replay.live_parity import MODE, LiveRun
from ki_policy_node.replay.replay import ReplayOptions, words_of
from ki_robot.actions.chunk import ActionChunk
from ki_robot.contract.contract import Contract
from ki_robot.errors import Rejected
from ki_robot.messages.arrays import stamp_ns, to_chunk

START_S = 600.0  # a large model is read, checked and warmed up
ANSWER_S = 30.0
QUIET_S, LAST_CHUNK_S = 1.0, 10.0  # how long to wait for more chunks at the end of the bag, and for the first
CLOCK_HZ = 200.0


def play_live(
    path: str | Path,
    contract: Contract,
    node_name: str,
    options: ReplayOptions,
    settings: Mapping[str, int],
    rate: float,
    ended: Callable[[], str],
) -> LiveRun:
    """Plays a bag into a policy node that is running or loading, and listens.

    The node must be in dry run, on simulated time, in mode `latest`, and compute as the replay does: whatever moves
    the robot does not listen to what it publishes then.

    Args:
        path: The bag.
        contract: The node's robot.
        node_name: With its namespace: /robot/policy_node.
        options: Those of the replay that the chunks will be compared with.
        settings: `seed` and `denoise_steps` of the replay.
        rate: 0.5 plays half as fast.
        ended: Says why the process of the node has ended; empty while it runs.

    Raises:
        NodeError: the node is not there, cannot run, or runs otherwise than above.
        BagError: the bag cannot be read.
    """
    bag = open_bag(path)
    topics = match_topics(bag, contract, options.remap)
    with ros.node('ki_replay', enable_rosout=False, start_parameter_services=False) as node:
        session = _Session(node, '/' + node_name.strip('/'), ended)
        with session.spinning():
            session.wait_until_loaded()
            session.check(settings)
            plan = player.Playback(
                Path(path), rate, clock_hz=CLOCK_HZ, topics=tuple(topics.streams), remap=session.names(topics.streams)
            )
            publishers, missing = player.advertise(node, bag, plan)
            if missing:
                raise NodeError(f'{path} cannot be played: {"; ".join(missing)}')
            session.wait(
                'the node to subscribe to its streams', lambda: player.ready(publishers, len(publishers)), ANSWER_S
            )
            texts = {} if options.instruction else topics.texts
            publishers |= {topic: _Words(session, bag, kind) for topic, kind in texts.items()}
            clock = player.clock_publisher(node)
            session.set_clock(clock, next(iter(player.messages(bag, plan, publishers))).log_ns)
            if options.instruction:
                session.tell(options.instruction, wait=True)
            with session.run():
                player.play_once(bag, plan, publishers, clock)
                session.settle()
    return session.heard()


class _Session:
    """What is heard of one policy node, and said to it."""

    def __init__(self, node: Any, name: str, ended: Callable[[], str]) -> None:
        from ki_msgs.msg import ActionChunk as ActionChunkMessage
        from ki_msgs.msg import PolicyStatus
        from rclpy.qos import DurabilityPolicy, QoSProfile

        self._node, self._name, self._ended = node, name, ended
        self._status: Any = None
        self._chunks: list[ActionChunk] = []
        self._words: dict[str, str] = {}
        self._refused = ''
        self._calls = ServiceCalls(node, self._receive)
        self._states = PolicyStatus
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(PolicyStatus, f'{name}/status', self._on_status, latched)
        node.create_subscription(ActionChunkMessage, f'{name}/dry_run_chunk', self._on_chunk, QoSProfile(depth=1000))

    @contextlib.contextmanager
    def spinning(self) -> Iterator[None]:
        """Receives in a thread of its own, for the length of a `with` block."""
        from rclpy.executors import SingleThreadedExecutor

        stop, executor = threading.Event(), SingleThreadedExecutor()
        executor.add_node(self._node)

        def spin() -> None:
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.1)

        thread = threading.Thread(target=spin, name='ki_replay', daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()
            executor.remove_node(self._node)
            executor.shutdown()

    def wait(self, what: str, condition: Callable[[], bool], seconds: float) -> None:
        """Waits until `condition()` is true; NodeError when that takes too long, or the node's process has ended."""
        end = time.monotonic() + seconds
        while not condition():
            why = self._ended()
            if why:
                raise NodeError(why)
            if time.monotonic() > end:
                said = f' It says: {self._status.message}' if self._status and self._status.message else ''
                raise NodeError(f'Waited {seconds:g} s for {what} of {self._name}, in vain.{said}')
            time.sleep(0.02)

    def wait_until_loaded(self) -> None:
        """Until the node is ready for a run, or in one."""

        def loaded() -> bool:
            status = self._status
            failed = (self._states.STATE_UNCONFIGURED, self._states.STATE_FAULT)
            if status is not None and status.state in failed and status.message:
                raise NodeError(f'{self._name} cannot run: {status.message}')
            return status is not None and status.state >= self._states.STATE_READY and bool(status.streams)

        self.wait('the status', lambda: self._status is not None, ANSWER_S)
        self.wait('the policy', loaded, START_S)

    def check(self, settings: Mapping[str, int]) -> None:
        """Refuses a node whose chunks could move something, or could not be compared."""
        from rcl_interfaces.srv import GetParameters

        wanted = {'dry_run': True, 'use_sim_time': True, 'mode': MODE, **settings}
        answer = self._call(GetParameters, 'get_parameters', GetParameters.Request(names=list(wanted)))
        fields = ('bool_value', 'bool_value', 'string_value', *['integer_value'] * len(settings))
        for (name, value), given, field in zip(wanted.items(), answer.values, fields, strict=True):
            found = getattr(given, field)
            if found != value:
                raise NodeError(
                    f'{self._name} runs with {name} {found!r}; a bag is played only to one with {name} {value!r}.'
                )

    def names(self, streams: Mapping[str, Sequence[str]]) -> dict[str, str]:
        """Topic of the bag -> topic that the node listens to, as its status tells."""
        heard = {each.key: each.topic for each in self._status.streams}
        unknown = [name for names in streams.values() for name in names if name not in heard]
        if unknown:
            raise NodeError(f'{self._name} has no stream {unknown[0]}: it runs for another robot.')
        return {topic: heard[names[0]] for topic, names in streams.items()}

    def set_clock(self, clock: Callable[[int], None], now_ns: int) -> None:
        """Until the node says that it is the time at which the bag begins."""

        def agreed() -> bool:
            clock(now_ns)
            return stamp_ns(self._status.header) == now_ns

        self.wait('the time of the bag (use_sim_time)', agreed, ANSWER_S)

    def tell(self, text: str, wait: bool = False) -> None:
        """Gives an instruction, under an id of its own."""
        from ki_msgs.msg import Instruction
        from ki_msgs.srv import SetInstruction

        name = f'replay-{len(self._words) + 1}'
        self._words[name] = text
        request = SetInstruction.Request(instruction=Instruction(text=text, id=name))
        if wait:
            answer = self._call(SetInstruction, 'set_instruction', request)
            if not answer.success:
                raise NodeError(answer.message)
        else:
            self._calls.client(SetInstruction, self._full('set_instruction'), ANSWER_S).call_async(request)

    @contextlib.contextmanager
    def run(self) -> Iterator[None]:
        """A run for the length of a `with` block; one that is on already stays on."""
        from std_srvs.srv import Trigger

        starts = self._status.state == self._states.STATE_READY
        if starts:
            answer = self._call(Trigger, 'start', Trigger.Request(), self._runs)
            if answer is not None and not answer.success:
                raise NodeError(answer.message)
        self._chunks.clear()
        try:
            yield
        finally:
            if starts:
                self._call(Trigger, 'stop', Trigger.Request())

    def settle(self) -> None:
        """Until no more chunks come."""
        end, count, since = time.monotonic() + LAST_CHUNK_S, -1, time.monotonic()
        while time.monotonic() < end:
            why = self._ended()
            if why:
                raise NodeError(why)
            if len(self._chunks) != count:
                count, since = len(self._chunks), time.monotonic()
            if count and time.monotonic() > since + QUIET_S:
                break
            time.sleep(0.05)

    def heard(self) -> LiveRun:
        """The chunks so far."""
        last_word = self._refused or (self._status.message if self._status is not None else '')
        return LiveRun(tuple(self._chunks), dict(self._words), last_word)

    def _runs(self) -> bool:
        states = self._states
        return self._status.state in (states.STATE_RUNNING, states.STATE_DRY_RUN, states.STATE_HOLDING)

    def _full(self, service: str) -> str:
        return f'{self._name}/{service}'

    def _receive(self) -> None:
        if why := self._ended():
            raise NodeError(why)
        time.sleep(0.02)

    def _call(self, kind: Any, name: str, request: Any, done: Callable[[], bool] = lambda: False) -> Any:
        return self._calls.call(kind, self._full(name), request, ANSWER_S, done=done)

    def _on_status(self, message: Any) -> None:
        self._status = message

    def _on_chunk(self, message: Any) -> None:
        try:
            self._chunks.append(to_chunk(message))
        except Rejected as error:
            self._refused = str(error)


class _Words:
    """Stands where a publisher would: the texts of a bag become instructions, as the replay takes them."""

    def __init__(self, session: _Session, bag: Bag, kind: str) -> None:
        self._session, self._bag, self._kind, self._text = session, bag, kind, ''

    def publish(self, data: bytes) -> None:
        """Tells the node what a recorded message says."""
        try:
            text = words_of(self._bag.decoder.decode(self._kind, data)).strip()
        except Exception:  # damaged CDR raises nearly anything; the replay counts it
            return
        if text and text != self._text:
            self._text = text
            self._session.tell(text)
