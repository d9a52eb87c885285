"""Episodes into bags: one rosbag2 folder per episode, of serialized messages as they came, with markers.

Nothing is decoded: subscriptions are raw, and a thread writes to disk. Topics are subscribed before an episode
begins, so its first messages are there; latched ones (`/tf_static`, instructions) are written at the start of each.

    action   ~/record            RecordEpisode; cancelling ends and keeps
    service  ~/start_recording   StartRecording
             ~/stop_recording    StopRecording, with the outcome
             ~/discard_episode   Trigger
             ~/save_black_box    Trigger: the last seconds of all topics, as a bag
    topic    episode             EpisodeMarker, latched; also written into the bag
             /diagnostics        what is recorded, and the free space

Its parameters are in `settings`.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from ki_msgs.action import RecordEpisode
from ki_msgs.msg import EpisodeMarker, StreamHealth
from ki_msgs.srv import StartRecording, StopRecording
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import serialize_message
from rclpy.subscription import Subscription
from rclpy.task import Future
from rosgraph_msgs.msg import Clock as ClockMessage
from std_srvs.srv import Trigger

from ki_bags.errors import BagError
from ki_bags.repair import abandoned, finish
from ki_common.errors import KiError
from ki_policy_node.common import process, ros
from ki_policy_node.common.diagnostics import RECORDING
from ki_policy_node.common.parameters import Parameters
from ki_policy_node.cycle.instruction import MAX_INSTRUCTION
from ki_policy_node.errors import NodeError
from ki_policy_node.recorder.black_box import BlackBox, KeptMessage
from ki_policy_node.recorder.episode_writer import EpisodeWriter, RecordedTopic, definition_of, qos_text
from ki_policy_node.recorder.settings import RecorderSettings
from ki_robot.messages.arrays import MAX_ID

DISCOVERY_S = 0.25
FEEDBACK_S = 0.2
MIB = 1 << 20
DEPTH = 1000  # of every subscription: a stall of this process must not cost messages
LATCHED_KEPT = 100  # /tf_static has one message per broadcaster
# Topics that all robots of a graph share by their names; the other topics of another namespace are another robot's.
SHARED = frozenset({'/tf', '/tf_static', '/clock', '/diagnostics'})
TELLS_TIMES = hasattr(Subscription, 'CallbackType')  # Humble does not
ANSWERS_KEPT = 16  # of services, for requests that are repeated because their answer was lost


@dataclass
class Stream:
    """One topic that is listened to."""

    channel: RecordedTopic
    latched: deque[tuple[bytes, int]] | None
    subscription: Subscription | None = None
    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=1000))
    received: int = 0
    dropped: int = 0

    def health(self) -> StreamHealth:
        """As the feedback of the action shows it."""
        now = time.monotonic()
        age_s = now - self.arrivals[-1] if self.arrivals else 0.0
        message = StreamHealth(key=self.channel.name, topic=self.channel.name)
        message.state = StreamHealth.STATE_OK if self.arrivals else StreamHealth.STATE_NEVER_RECEIVED
        message.age.sec, message.age.nanosec = int(age_s), int(age_s % 1 * 1e9)
        message.rate = float(sum(now - arrival < 1.0 for arrival in self.arrivals))
        message.received, message.rejected = self.received, self.dropped
        return message


@dataclass
class OngoingEpisode:
    """The episode that is being recorded."""

    writer: EpisodeWriter
    index: int
    task: str
    policy_id: str
    start_ns: int
    start_s: float
    since_ns: int
    """Wall time from which on what arrives is of this episode, ns."""
    finished: Future = field(default_factory=Future)


class Recorder(Node):
    """The node; see the head of this file for its interface."""

    def __init__(self, **options: Any) -> None:
        """Declares parameters, services and the action, and begins to listen."""
        super().__init__('recorder', automatically_declare_parameters_from_overrides=True, **options)
        self.settings = Parameters(self, RecorderSettings).values
        self.folder = Path(self.settings.folder).expanduser()
        self.episode: OngoingEpisode | None = None
        self.streams: dict[str, Stream] = {}
        self._unrecordable: set[str] = set()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._markers = self.create_publisher(EpisodeMarker, 'episode', latched)
        self._marker_channel = RecordedTopic(
            self._markers.topic_name,
            'ki_msgs/msg/EpisodeMarker',
            qos_text([latched]),
            *definition_of('ki_msgs/msg/EpisodeMarker'),
        )
        self.create_service(StartRecording, '~/start_recording', self._once(self._on_start))
        self.create_service(StopRecording, '~/stop_recording', self._once(self._on_stop))
        self.create_service(Trigger, '~/discard_episode', self._on_discard)
        self.create_service(Trigger, '~/save_black_box', self._on_save_black_box)
        self._action = ActionServer(
            self,
            RecordEpisode,
            '~/record',
            self._on_record,
            goal_callback=self._on_goal,
            cancel_callback=lambda goal: CancelResponse.ACCEPT,
        )
        self._goal: Any = None
        self._accepted_ns = 0
        self._answers: deque[tuple[str, Any]] = deque(maxlen=ANSWERS_KEPT)
        self._clock_history: deque[tuple[int, int]] = deque(maxlen=DEPTH)
        self._in_sim_time = bool(self.get_parameter('use_sim_time').value)
        self._clock_subscription: Subscription | None = None
        if self._in_sim_time:
            qos = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.BEST_EFFORT)
            self._clock_subscription = self.create_subscription(ClockMessage, '/clock', with_times(self._on_clock), qos)
        # On its own clock: where simulated time stands still, topics are to be found all the same.
        self.create_timer(DISCOVERY_S, self.discover, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_timer(FEEDBACK_S, self._tick)
        self._ended = ''  # why the last episode ended by itself
        self._black_box = BlackBox(self, self.settings) if self.settings.black_box else None
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        self.create_timer(FEEDBACK_S, self._watch, clock=process.STEADY)
        self.create_timer(1.0, self._diagnose, clock=process.STEADY)
        self.discover()
        # Beside the recording: what a killed recorder left may be large.
        threading.Thread(target=self._finish_abandoned, name='repair', daemon=True).start()
        if self.settings.task:
            self.start(self.settings.task)

    def _finish_abandoned(self) -> None:
        """Finishes the episodes of a recorder that was killed."""
        for partial in abandoned(self.folder, self.settings.prefix):
            try:
                path, count = finish(partial)
                self.get_logger().warning(f'{path} is finished, {count} messages: its recorder was killed.')
            except (BagError, OSError) as error:
                self.get_logger().error(f'{partial} is not finished: {error}')

    # -- listening

    def wants(self, name: str) -> bool:
        """Whether a topic is to be recorded: listed as extra; listed, or where none is, the robot's own, if not hidden.

        The robot's are those below the namespace of the recorder, and those that all robots share.
        """
        if name == self._markers.topic_name:
            return False
        if name in {self.resolve_topic_name(topic) for topic in self.settings.extra_topics}:
            return True
        if self.settings.topics:
            return name in {self.resolve_topic_name(topic) for topic in self.settings.topics}
        if '/_' in name or name in {'/rosout', '/parameter_events'}:
            return False
        return name in SHARED or name.startswith(self.get_namespace().rstrip('/') + '/')

    def discover(self) -> None:
        """Subscribes to wanted topics that have appeared."""
        for name, types in self.get_topic_names_and_types():
            if name in self.streams or name in self._unrecordable or not self.wants(name):
                continue
            offers = self.get_publishers_info_by_topic(name)
            if not offers:
                continue
            try:
                self._listen(name, types[0], offers)
            except NodeError as error:
                self._unrecordable.add(name)
                self.get_logger().warning(f'{name} is not recorded: {error}')

    def _listen(self, name: str, type_name: str, offers: list[Any]) -> None:
        cls, (definition, digest) = ros.message_class(type_name), definition_of(type_name)
        qos = ros.matching_qos(self, name, DEPTH)
        latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL
        channel = RecordedTopic(name, type_name, qos_text([offer.qos_profile for offer in offers]), definition, digest)
        # An instruction of an earlier episode has no place in this one.
        kept = LATCHED_KEPT if name.endswith('tf_static') else len(offers)
        stream = self.streams[name] = Stream(channel, deque(maxlen=kept) if latched else None)

        store = functools.partial(self._store, stream)
        stream.subscription = self.create_subscription(cls, name, with_times(store), qos, raw=True)

    def _store(self, stream: Stream, data: bytes, sent_ns: int, heard_ns: int) -> None:
        stream.received += 1
        stream.arrivals.append(time.monotonic())
        if stream.latched is not None:
            stream.latched.append((data, sent_ns))
        log_ns = self._log_ns(sent_ns, heard_ns)
        if self._black_box is not None:
            self._black_box.hear(KeptMessage(stream.channel, log_ns, data, sent_ns, stream.arrivals[-1]))
        episode = self.episode
        if episode is None:
            return
        # What waited in a queue while this process stalled is of the time before; but the wall clock may be set back.
        if heard_ns < episode.since_ns <= time.time_ns():
            if stream.latched is None:
                return
            log_ns = episode.start_ns
        stream.dropped += not episode.writer.write(stream.channel, log_ns, data, sent_ns)

    def _on_clock(self, message: ClockMessage, sent_ns: int, _heard_ns: int) -> None:
        self._clock_history.append((sent_ns, message.clock.sec * 10**9 + message.clock.nanosec))

    def _log_ns(self, sent_ns: int, heard_ns: int) -> int:
        """When a message counts as logged: when it arrived; in simulated time, what the clock said when it was sent.

        Not when this thread came to it: what waited in a queue while the process stalled would all have one time.
        Simulated time may run at several times the wall clock, and a few milliseconds in a queue are steps then.
        """
        if not self._in_sim_time:
            return heard_ns
        said = next((time_ns for told_ns, time_ns in reversed(self._clock_history) if told_ns <= sent_ns), None)
        return self.get_clock().now().nanoseconds if said is None else said

    # -- episodes

    def start(
        self, task: str, policy_id: str = '', path: Path | None = None, since_ns: int | None = None
    ) -> OngoingEpisode:
        """Opens an episode in `path`, or in the next free folder.

        It holds what arrives from now on, or from the wall time `since_ns` on, and what is latched.

        Raises:
            NodeError: one is open already, a text is too long, or there is too little space.
            BagError: the folder cannot be made.
        """
        if self.episode:
            raise NodeError(f'Episode {self.episode.index} is being recorded; stop it first.')
        if len(task) > MAX_INSTRUCTION or len(policy_id) > MAX_ID:
            raise NodeError(
                f'The task has {len(task)} characters and the policy id {len(policy_id)}; write at most '
                f'{MAX_INSTRUCTION} and {MAX_ID}.'
            )
        if shortage := self._shortage():
            raise NodeError(shortage)
        self.discover()
        settings, self._ended = self.settings, ''
        index = next_index(self.folder, settings.prefix)
        path = path or self.folder / f'{settings.prefix}_{index:04d}'
        writer = EpisodeWriter(path, settings.compression, settings.cache_mib << 20)
        start_ns = self.get_clock().now().nanoseconds
        since_ns = time.time_ns() if since_ns is None else since_ns
        for stream in self.streams.values():
            stream.received = stream.dropped = 0
        for channel, data, sent_ns in self._latched():
            writer.write(channel, start_ns, data, sent_ns)
        self.episode = OngoingEpisode(writer, index, task, policy_id, start_ns, time.monotonic(), since_ns)
        self._mark(EpisodeMarker.PHASE_START, EpisodeMarker.OUTCOME_UNLABELED)
        self.get_logger().info(f'recording {writer.path}: {task}')
        return self.episode

    def stop(self, outcome: int = EpisodeMarker.OUTCOME_UNLABELED) -> tuple[OngoingEpisode, Path | None]:
        """Ends the episode; returns it with the folder of its bag, None when it was discarded.

        Raises:
            NodeError: none is open.
            BagError: the disk failed on the way.
        """
        if not self.episode:
            raise NodeError(self._ended or 'No episode is being recorded; start one first.')
        if outcome != EpisodeMarker.OUTCOME_DISCARD:
            self._take_waiting()
        self._mark(EpisodeMarker.PHASE_END, outcome)
        episode, self.episode = self.episode, None
        path = None
        try:
            path = episode.writer.close(keep=outcome != EpisodeMarker.OUTCOME_DISCARD)
        finally:
            episode.finished.set_result((path, episode.writer.error))
        if episode.writer.dropped:
            self.get_logger().error(f'{episode.writer.dropped} messages were dropped: the disk is too slow (cache_mib)')
        self.get_logger().info(f'{path or "discarded"}: {episode.writer.messages} messages')
        return episode, path

    def _take_waiting(self) -> None:
        """Stores what has arrived and waits, as this thread was busy: an episode that ends keeps its last moments."""
        # The clock first: it says when the others were sent.
        for subscription in (self._clock_subscription, *(stream.subscription for stream in self.streams.values())):
            if subscription is None:
                continue
            for heard in ros.waiting(subscription, DEPTH):
                subscription.callback(*(heard if TELLS_TIMES else heard[:1]))

    def _mark(self, phase: int, outcome: int) -> None:
        assert self.episode
        marker = EpisodeMarker(phase=phase, episode_index=self.episode.index, task=self.episode.task, outcome=outcome)
        marker.policy_id = self.episode.policy_id
        now = self.get_clock().now()
        marker.header.stamp = now.to_msg()
        self._markers.publish(marker)
        self.episode.writer.write(self._marker_channel, now.nanoseconds, serialize_message(marker))

    # -- services and the action

    def _once(self, serve: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """A service that answers a request with a known `request_id` as it did before: its answer was lost."""

        def answer(request: Any, response: Any) -> Any:
            known = next((before for name, before in self._answers if name and name == request.request_id), None)
            if known is not None:
                return known
            response = serve(request, response)
            self._answers.append((request.request_id, response))
            return response

        return answer

    def _on_start(self, request: StartRecording.Request, response: StartRecording.Response) -> StartRecording.Response:
        try:
            episode = self.start(request.task, request.policy_id)
        except (NodeError, BagError) as error:
            response.message = str(error)
            return response
        response.success, response.uri, response.episode_index = True, str(episode.writer.path), episode.index
        return response

    def _on_stop(self, request: StopRecording.Request, response: StopRecording.Response) -> StopRecording.Response:
        try:
            if request.outcome > EpisodeMarker.OUTCOME_DISCARD:
                raise NodeError(f'outcome {request.outcome} is no EpisodeMarker.OUTCOME_*.')
            _, path = self.stop(request.outcome)
        except (NodeError, BagError) as error:
            response.message = str(error)
            return response
        response.success, response.uri = True, str(path or '')
        return response

    def _on_discard(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        try:
            episode, _path = self.stop(EpisodeMarker.OUTCOME_DISCARD)
        except (NodeError, BagError) as error:
            response.message = str(error)
            return response
        response.success, response.message = True, f'episode {episode.index} is discarded'
        return response

    # -- space, size, and the black box

    def _shortage(self) -> str:
        """What to do about too little free space; empty where there is enough."""
        folder = next(each for each in (self.folder.absolute(), *self.folder.absolute().parents) if each.exists())
        free = shutil.disk_usage(folder).free // MIB
        if free >= self.settings.min_free_mib:
            return ''
        return f'Only {free} MiB are free for {self.folder}; free some, or lower min_free_mib.'

    def _watch(self) -> None:
        """Writes a black box that is due; ends an episode for lack of space, and begins the next of a long one."""
        if self._black_box is not None:
            self._black_box.watch(self._latched())
        episode, settings = self.episode, self.settings
        if episode is None:
            return
        if shortage := self._shortage():
            self._end_by_itself(shortage)
        elif self._goal is None and (
            0 < settings.rotate_s <= time.monotonic() - episode.start_s
            or 0 < settings.rotate_mib * MIB <= episode.writer.bytes
        ):
            self.stop()
            self.start(episode.task, episode.policy_id, since_ns=episode.since_ns)  # what waits is lost to neither

    def _latched(self) -> Iterator[tuple[RecordedTopic, bytes, int]]:
        """Latched messages with the wall time at which they were sent: every recording begins with them."""
        for stream in self.streams.values():
            for data, sent_ns in stream.latched or ():
                yield stream.channel, data, sent_ns

    def _end_by_itself(self, why: str) -> None:
        assert self.episode
        index = self.episode.index
        try:
            _, path = self.stop()
            self._ended = f'Episode {index} ended by itself: {why} It is kept in {path}.'
        except BagError as error:
            self._ended = f'Episode {index} ended by itself: {error}'
        self.get_logger().error(self._ended)

    def _on_save_black_box(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._black_box is None:
            raise NodeError('Nothing is kept: parameter black_box is 0.')
        response.success, response.message = True, str(self._black_box.request())
        return response

    def _diagnose(self) -> None:
        episode = self.episode
        level = DiagnosticStatus.ERROR if self._ended else DiagnosticStatus.OK
        name = f'{self.get_fully_qualified_name().lstrip("/")}: {RECORDING}'
        status = DiagnosticStatus(level=level, name=name, message=self._ended or 'waits')
        if episode is not None:
            status.message = f'records episode {episode.index}: {episode.task}'
            status.values.append(KeyValue(key='written [MiB]', value=f'{episode.writer.bytes / MIB:.1f}'))
            status.values.append(KeyValue(key='dropped messages', value=str(episode.writer.dropped)))
        if self._black_box is not None:
            status.values.append(KeyValue(key='black box [MiB]', value=f'{self._black_box.size / MIB:.1f}'))
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def close(self) -> None:
        """Ends an open episode, kept and unlabeled, and waits until black boxes are on disk."""
        try:
            if self.episode:
                self.stop()
        finally:
            if self._black_box is not None:
                self._black_box.close(self._latched())

    def _on_goal(self, _: RecordEpisode.Goal) -> GoalResponse:
        self._accepted_ns = time.time_ns()
        return GoalResponse.REJECT if self.episode else GoalResponse.ACCEPT

    async def _on_record(self, goal: Any) -> RecordEpisode.Result:
        result = RecordEpisode.Result()
        try:
            # Who was told that it is accepted counts on it from then on.
            episode = self.start(goal.request.task, goal.request.policy_id, since_ns=self._accepted_ns)
        except (NodeError, BagError) as error:
            result.message = str(error)
            goal.abort()
            return result
        self._goal = goal
        path, result.message = await episode.finished
        self._goal = None
        result.success, result.uri, result.episode_index = path is not None, str(path or ''), episode.index
        result.messages = episode.writer.messages
        elapsed_ns = self.get_clock().now().nanoseconds - episode.start_ns
        result.duration.sec, result.duration.nanosec = divmod(max(elapsed_ns, 0), 10**9)
        if goal.is_cancel_requested:
            goal.canceled()
        elif result.success:
            goal.succeed()
        else:
            goal.abort()
        return result

    def _tick(self) -> None:
        """Ends an episode whose time is over, that is cancelled, or whose disk has failed; otherwise feedback."""
        episode, goal = self.episode, self._goal
        if not episode:
            return
        elapsed_ns = self.get_clock().now().nanoseconds - episode.start_ns
        limit = goal.request.max_duration if goal else None
        limit_ns = limit.sec * 10**9 + limit.nanosec if limit else 0
        if episode.writer.error or (goal and goal.is_cancel_requested) or 0 < limit_ns <= elapsed_ns:
            if episode.writer.error:
                self._end_by_itself(episode.writer.error)
            else:
                self.stop()
        elif goal:
            feedback = RecordEpisode.Feedback(bytes_written=episode.writer.bytes)
            feedback.elapsed.sec, feedback.elapsed.nanosec = divmod(max(elapsed_ns, 0), 10**9)
            feedback.streams = [stream.health() for stream in self.streams.values()]
            goal.publish_feedback(feedback)


def with_times(callback: Callable[[Any, int, int], None]) -> Callable[..., None]:
    """A subscription's callback that passes a message with the wall times at which it was sent and arrived [ns].

    Humble tells neither; there the time of this call stands for both. A middleware may leave out the arrival.
    """
    if TELLS_TIMES:
        return lambda message, info: callback(
            message, info['source_timestamp'], info['received_timestamp'] or time.time_ns()
        )
    return lambda message: callback(message, time.time_ns(), time.time_ns())


def next_index(folder: Path, prefix: str) -> int:
    """One more than the highest number among the episodes of a folder, finished or not; 0 when there are none."""
    pattern = re.compile(rf'{re.escape(prefix)}_(\d+)(\..*)?')
    found = [pattern.fullmatch(path.name) for path in folder.glob(f'{prefix}_*')]
    return max((int(match.group(1)) for match in found if match), default=-1) + 1


def main() -> int:
    """Runs the node until it is told to stop; an open episode is kept, unlabeled."""
    try:
        _, recorder = process.start(Recorder)
        ros.spin_until_signal(recorder)
        recorder.close()
        recorder.destroy_node()
    except KiError as error:
        print(f'recorder: {error}', file=sys.stderr, flush=True)
        return 2
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
