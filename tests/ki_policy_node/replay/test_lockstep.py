"""One recording, live and replayed, step by step: a real node over DDS makes the chunks of the replay, in every mode.

The node runs on simulated time that stands still until it has heard each message, so that it sees what the replay sees
when the replay sees it. Then nothing may differ: stamps, words, seams and values of every chunk, and every hold.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip('rclpy')

import rclpy
import yaml
from ki_msgs.msg import ActionChunk, Instruction, PolicyStatus
from ki_msgs.srv import SetInstruction
from lifecycle_msgs.msg import Transition
from rcl_interfaces.srv import SetParameters
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger

from ki_bags import message_builders
from ki_bags.reader import open_bag
from ki_bags.writer import BagWriter
from ki_common.nodes import NODES
from ki_policy_node.common.service_calls import ServiceCalls
from ki_policy_node.common.streams import message_type
from ki_policy_node.cycle.continuation import Timing
from ki_policy_node.cycle.policy_types import Policy
from ki_policy_node.policy.backends import Commissioning, CommissioningPolicy, Wanted, open_policy
from ki_policy_node.replay.replay import Replay, ReplayOptions, ReplayRun, replay
from ki_robot.contract.contract import Contract
from ki_robot.messages.arrays import stamp_ns, to_chunk
from ki_robot.observation.observation import Observation
from ki_vla.engine.interface import Carry
from ki_vla.policy.inference import LoadedPolicy, load_policy
from ki_vla.remote.observation_keys import ObservationKeys
from ki_vla.remote.server import PolicyServer

pytestmark = pytest.mark.ros
MS = 1_000_000
NS = 10**9
BEGIN = 1_700_000_000 * NS
EXECUTE = 8
# The bundles: one whose running chunk is continued by guidance, one that was trained to continue it.
CONTINUES = {'guided': 0, 'trained': 6}


@pytest.fixture(scope='module')
def contract(rigs: ModuleType) -> Contract:
    return Contract.parse(rigs.small_robot() | {'horizon': 20})


@pytest.fixture(scope='module')
def bundles(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random weights that look at what they are shown, by the way in which they continue a chunk."""
    import torch

    from ki_vla.policy.bundle import load_bundle, write_bundle
    from ki_vla.policy.serving import Serving
    from ki_vla.policy.untrained import write_untrained

    folder = tmp_path_factory.mktemp('lockstep')
    write_untrained(folder / 'plain', contract)
    plain = load_bundle(folder / 'plain')
    model = plain.model()
    with torch.no_grad():
        for parameter in model.expert.parameters():
            parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(0))
    for name, most in CONTINUES.items():
        serving = Serving(mode='rtc', execute_steps=EXECUTE, max_delay=most)
        write_bundle(folder / name, name=name, weights=model, processor=plain.processor, serving=serving)
    return {name: folder / name for name in CONTINUES}


def write_bag(
    folder: Path, contract: Contract, begin_ns: int = BEGIN, seconds: float = 3.6, gap: tuple[float, float] = (0, 0)
) -> Path:
    """Joints at 25 Hz, cameras at 10 Hz, the wrist's with a gap [s]; told to wave, and from 1.13 s on to bow."""
    rng = np.random.default_rng(0)
    with BagWriter(folder) as writer:
        for tick in range(round(seconds * 100)):
            now, second = begin_ns + tick * 10 * MS, tick / 100
            if tick in (0, 113):
                said = message_builders.instruction(now, 'bow' if tick else 'wave', f'words-{tick}')
                message_builders.put(writer, 'instruction', now, said)
            if tick % 4 == 1:
                values = {name: 0.3 * np.sin(second + row) for row, name in enumerate(contract.state_names)}
                joints = message_builders.state(contract, contract.state_streams[0], now - 3 * MS, values)
                message_builders.put(writer, 'joint_states', now, joints)
            pixels = rng.integers(0, 255, (24, 32, 3), np.uint8)
            if tick % 10 == 4:
                shown = message_builders.picture(now - 8 * MS, pixels)
                message_builders.put(writer, 'scene/image_raw/compressed', now, shown)
            if tick % 10 == 7 and not gap[0] <= second < gap[1]:
                message_builders.put(writer, 'wrist/image_raw', now, message_builders.raw(now - 9 * MS, pixels))
    return folder


class Live:
    """A policy node on simulated time, told one thing after the other, each only when it has heard the last."""

    def __init__(self, node: Any, process: Any, contract: Contract, rigs: ModuleType) -> None:
        self._process, self._rigs = process, rigs
        self._status: Any = PolicyStatus()
        self._calls = ServiceCalls(node, lambda: time.sleep(0.001))
        self._sent, self._configured = 0, False
        self.chunks: list[Any] = []
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(PolicyStatus, 'policy_node/status', self._on_status, latched)
        node.create_subscription(ActionChunk, 'policy_node/dry_run_chunk', self._on_chunk, QoSProfile(depth=100))
        self._clock = node.create_publisher(Clock, '/clock', 1)
        specs = (*contract.cameras, *contract.state_streams)
        self._publishers = {
            '/' + spec.topic: node.create_publisher(message_type(spec), spec.topic, QoSProfile(depth=10))
            for spec in specs
        }

    def _on_status(self, message: Any) -> None:
        self._status = message

    def _on_chunk(self, message: Any) -> None:
        self.chunks.append(to_chunk(message))

    def until(self, what: str, condition: Callable[[], bool], seconds: float = 90.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise AssertionError(f'not within {seconds:g} s: {what}\n{self._status}\n{self._process.text()}')
            time.sleep(0.001)

    def call(self, kind: Any, name: str, request: Any, done: Callable[[], bool] = lambda: False) -> Any:
        return self._calls.call(kind, f'policy_node/{name}', request, 90.0, done=done)

    def change(self, *transitions: int) -> None:
        for which in transitions:
            assert self._rigs.change_state(self._calls, 'policy_node', which, 90.0), self._process.text()

    def configure(self, now_ns: int, **parameters: Any) -> None:
        """Unconfigured, with other parameters, active again, and then it is `now_ns`."""
        if self._configured:
            self.change(Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP)
        self._configured = True
        wanted = [Parameter(name, value=value).to_parameter_msg() for name, value in parameters.items()]
        answer = self.call(SetParameters, 'set_parameters', SetParameters.Request(parameters=wanted))
        assert all(result.successful for result in answer.results), answer.results
        self.clock(now_ns)
        self.change(Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE)
        self.until('subscriptions', lambda: all(each.get_subscription_count() for each in self._publishers.values()))
        self._sent = 0
        self.chunks.clear()

    def start(self) -> None:
        def runs() -> bool:
            return bool(self._status.state == PolicyStatus.STATE_DRY_RUN)

        answer = self.call(Trigger, 'start', Trigger.Request(), runs)
        assert answer is None or answer.success

    def clock(self, now_ns: int) -> None:
        """From now on it is `now_ns`, and the node knows."""
        message = Clock()
        message.clock.sec, message.clock.nanosec = divmod(now_ns, NS)

        def heard() -> bool:
            return bool(stamp_ns(self._status.header) == now_ns)

        self._clock.publish(message)
        self.until('the time', heard)

    def send(self, topic: str, message: Any, data: bytes) -> None:
        """One message of the bag, and the node has it."""
        if topic == '/instruction':
            words = Instruction(text=message.text, id=message.id)
            assert self.call(SetInstruction, 'set_instruction', SetInstruction.Request(instruction=words)).success
            return
        self._sent += 1
        self._publishers[topic].publish(data)
        self.until('the message', lambda: sum(each.received for each in self._status.streams) >= self._sent)

    def agrees(self, found: Replay, begun_holds: int) -> None:
        """The node has come as far as the replay; what it made is the same."""
        self.until('a chunk', lambda: len(self.chunks) >= len(found.chunks))
        self.until('what was dropped', lambda: self._status.chunks_dropped >= sum(found.dropped.values()))
        if sum(found.holds.values()) > begun_holds:
            self.until('a hold', lambda: self._status.state == PolicyStatus.STATE_HOLDING)
        assert len(self.chunks) == len(found.chunks)


@pytest.fixture(scope='module')
def live(
    contract: Contract, rigs: ModuleType, shared_domain: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Live]:
    """One process for all tests of this file; each configures it anew."""
    folder = tmp_path_factory.mktemp('live')
    (folder / 'robot.yaml').write_text(yaml.safe_dump(contract.to_dict()))
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setenv('ROS_DOMAIN_ID', str(shared_domain))
        parameters = {'robot': folder / 'robot.yaml', 'backend': 'commissioning', 'use_sim_time': True}
        parameters |= {
            'status_rate': 100.0,
            'inference_timeout': 60.0,
            'dry_run': True,
            'autostart': False,
            'allow_untrained': True,
        }
        process = rigs.Process(NODES['policy_node'], folder / 'node.log', parameters)
        stack.callback(process.end)
        context = rclpy.Context()
        rclpy.init(context=context)
        stack.callback(lambda: rclpy.shutdown(context=context))
        node = rclpy.create_node('lockstep', context=context)
        stack.callback(node.destroy_node)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        stop = threading.Event()

        def spin() -> None:
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.05)

        thread = threading.Thread(target=spin, daemon=True)
        thread.start()
        stack.callback(lambda: (stop.set(), thread.join(), executor.shutdown()))
        yield Live(node, process, contract, rigs)


class GatedPolicy:
    """A served policy whose inferences take as long as the test says, not as long as this machine needs.

    Args:
        policy: What is served in truth.
    """

    def __init__(self, policy: LoadedPolicy) -> None:
        self._policy, self._begun, self._may_end = policy, threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._policy, name)

    def infer(self, observation: Observation, carry: Carry | None = None) -> Any:
        """The chunk, once it may be done."""
        self._begun.set()
        assert self._may_end.wait(60.0), 'nobody let the inference end'
        self._may_end.clear()
        return self._policy.infer(observation, carry)

    def await_begin(self) -> None:
        """An inference has begun, by what the node knows now."""
        assert self._begun.wait(30.0), 'no inference was begun'
        self._begun.clear()

    def end(self) -> None:
        """The inference that is on is done, or will be as soon as it begins."""
        self._may_end.set()


def step_together(live: Live, bags: list[Path], run: ReplayRun, gate: GatedPolicy | None = None) -> Replay:
    """Plays bags to the node and through the replay, one message after the other.

    Args:
        live: Configured for the same policy.
        bags: One after the other; the clock jumps between them.
        run: The replay.
        gate: The policy of the node, where an inference takes time: it begins and ends with the replay's.
    """
    started = False

    def ended() -> int:
        return len(run.found.chunks) + sum(run.found.dropped.values())

    def together(act: Callable[[], object]) -> None:
        """The replay acts, and the node has done the same."""
        begun, thought, before = sum(run.found.holds.values()), run.thinks, ended()
        act()
        if gate is not None and ended() > before:
            gate.end()
        live.agrees(run.found, begun)
        if gate is not None and run.thinks and (not thought or ended() > before):
            gate.await_begin()

    for path in bags:
        bag = open_bag(path)
        for message in bag.messages(run.wanted):
            while run.next_ns() <= message.log_ns:
                moment_ns = run.next_ns()
                live.clock(moment_ns)
                together(lambda moment_ns=moment_ns: run.advance(moment_ns))
            live.clock(message.log_ns)
            if not started:
                started = True
                live.start()
            decoded = bag.decode(message)
            live.send(message.topic, decoded, message.data)
            together(lambda each=message, decoded=decoded: run.take(each.topic, decoded, each.log_ns))
    if run.thinks:
        live.clock(run.next_ns())
    together(run.finish)
    return run.found


def same(live: Live, found: Replay) -> None:
    """Every chunk, to the last step."""
    assert len(live.chunks) == len(found.chunks)
    for heard, each in zip(live.chunks, found.chunks, strict=True):
        made = each.planned.chunk
        assert (heard.chunk_id, heard.start_ns, heard.observation_ns) == (
            made.chunk_id,
            made.start_ns,
            made.observation_ns,
        )
        assert (heard.frozen_prefix, heard.instruction_id) == (made.frozen_prefix, made.instruction_id)
        np.testing.assert_allclose(heard.data_HN, made.data_HN, atol=1e-6)


@pytest.mark.parametrize(
    ('mode', 'continues'),
    [
        ('latest', 'guided'),
        ('queue', 'guided'),
        ('temporal_ensemble', 'guided'),
        ('guided', 'guided'),
        ('auto', 'guided'),
        ('auto', 'trained'),
    ],
)
def test_a_change_of_words_and_a_gap_give_the_same_chunks_live_and_replayed_in_every_mode(
    live: Live, contract: Contract, bundles: dict[str, Path], tmp_path: Path, mode: str, continues: str
) -> None:
    bag = write_bag(tmp_path / 'bag', contract, gap=(1.8, 2.7))
    timing = Timing(mode, EXECUTE)
    policy = open_policy(Wanted('torch', str(bundles[continues]), allow_untrained=True), contract, timing)
    live.configure(BEGIN - 100 * MS, backend='torch', bundle=str(bundles[continues]), mode=mode, execute_steps=EXECUTE)
    options = ReplayOptions(timing, latency_ns=0)
    found = step_together(live, [bag], ReplayRun(open_bag(bag), contract, policy, options))
    same(live, found)
    words = [chunk.instruction_id for chunk in live.chunks]
    assert words == sorted(words), 'first wave, then bow, never back'
    first = next(chunk for chunk in live.chunks if chunk.instruction_id == 'words-113')
    assert first.observation_ns <= BEGIN + 1_200 * MS, 'new words are planned for at once'
    assert found.holds['stale'] == 1
    assert live.chunks[-1].observation_ns > BEGIN + 2_700 * MS, 'the stream has come back'
    assert len(live.chunks) >= 6
    if (mode, continues) not in (('latest', 'guided'), ('auto', 'guided')):  # auto is latest for a policy of no delays
        assert any(chunk.frozen_prefix for chunk in live.chunks), 'something was joined'
    # The command-line's way through the same bag, from front to end, is the same again.
    again = replay(bag, contract, policy, options)
    assert [each.planned.chunk.start_ns for each in again.chunks] == [each.start_ns for each in live.chunks]
    policy.close()


@pytest.mark.parametrize('mode', ['latest', 'queue'])
def test_a_slow_inference_delivers_at_the_same_time_and_drops_what_new_words_overtake(
    live: Live, contract: Contract, bundles: dict[str, Path], tmp_path: Path, mode: str
) -> None:
    bag, bundle = write_bag(tmp_path / 'bag', contract, seconds=1.9), bundles['guided']
    timing = Timing(mode, 4)
    policy = open_policy(Wanted('torch', str(bundle), allow_untrained=True), contract, timing)
    run = ReplayRun(open_bag(bag), contract, policy, ReplayOptions(timing, 310 * MS))
    served = load_policy(bundle, 'torch', robot=contract, allow_untrained=True)
    gate = GatedPolicy(served)
    with PolicyServer(gate, ObservationKeys(contract), port=0) as server:
        server.warm_up()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        live.configure(
            BEGIN - 100 * MS,
            backend='remote',
            remote_url=f'ws://127.0.0.1:{server.port}',
            remote_timeout=60.0,
            remote_jpeg_quality=0,
            mode=mode,
            execute_steps=4,
        )
        found = step_together(live, [bag], run, gate)
        gate.end()  # what was begun since, so that the server can close
    same(live, found)
    assert sum(found.dropped.values()) >= 1, 'the words came while a chunk for the old ones was made'
    assert {chunk.instruction_id for chunk in live.chunks} == {'words-0', 'words-113'}
    seen = [each.planned.delay for each in found.chunks]
    assert set(seen) <= {7, 8}, '310 ms and the age of the state, in steps of 50 ms'
    served.close()
    policy.close()


def commissioned(contract: Contract) -> Policy:
    """The replay of the commissioning policy takes its latency from the options, and wastes no time."""
    return CommissioningPolicy(contract, Commissioning('sine', 0.4))


def test_a_clock_that_jumps_back_voids_everything_live_and_replayed(
    live: Live, contract: Contract, tmp_path: Path
) -> None:
    earlier = BEGIN - 20 * NS
    bags = [write_bag(tmp_path / 'one', contract, seconds=1.7)]
    bags.append(write_bag(tmp_path / 'other', contract, earlier, seconds=1.0))
    live.configure(BEGIN - 100 * MS, backend='commissioning', motion='sine', amplitude=0.4, mode='rtc', execute_steps=4)
    run = ReplayRun(open_bag(bags[0]), contract, commissioned(contract), ReplayOptions(Timing('rtc', 4), latency_ns=0))
    found = step_together(live, bags, run)
    same(live, found)
    assert found.holds['clock_jump'] == 1
    after = [chunk for chunk in live.chunks if chunk.start_ns < BEGIN - NS]
    assert len(after) >= 3
    assert after[0].frozen_prefix == 0, 'it joins on to nothing of the time before'
