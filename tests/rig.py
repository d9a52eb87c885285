"""A robot made of topics and the real processes around it, for every test that needs the stack.

Loaded by path from the conftest of a folder: test modules share nothing by import.
"""

from __future__ import annotations

import atexit
import functools
import importlib.util
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from ki_msgs.msg import ActionChunk, PolicyStatus, SafetyEvent
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import String

from ki_common.nodes import NODES
from ki_policy_node.common.process import make_executor
from ki_policy_node.common.service_calls import ServiceCalls
from ki_policy_node.synthetic_robot import SyntheticRobot
from ki_robot.contract.contract import Contract
from ki_robot.messages.arrays import stamp_ns, time_ns

ROOT = Path(__file__).resolve().parent.parent
LATCHED = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
# A machine that runs other things must not turn a late thread into a hold; the tests of the timeouts set their own.
FOLLOWED_NS = 150_000_000
PATIENT = {'state_timeout': 1.0, 'status_timeout': 1.0}
PATIENT_STREAM = {'max_age_s': 1.0}
# Where a transition leads; a second request for it is refused there.
LEADS_TO = {
    Transition.TRANSITION_CONFIGURE: 'inactive',
    Transition.TRANSITION_ACTIVATE: 'active',
    Transition.TRANSITION_DEACTIVATE: 'inactive',
    Transition.TRANSITION_CLEANUP: 'unconfigured',
}


def change_state(calls: ServiceCalls, node: str, transition: int, seconds: float = 10.0) -> bool:
    """One transition of a node's lifecycle; whether it was made, also where the answer was lost."""

    def done() -> bool:
        state = calls.call(GetState, f'{node}/get_state', GetState.Request(), seconds).current_state
        return bool(state.label == LEADS_TO[transition])

    request = ChangeState.Request(transition=Transition(id=transition))
    answer = calls.call(ChangeState, f'{node}/change_state', request, seconds, done=done)
    return answer is None or bool(answer.success)


def small_robot() -> dict[str, Any]:
    """Two joints under a trajectory controller, a gripper under a forward controller, a base under a twist."""
    joint = {'unit': 'rad', 'representation': 'absolute'}
    limits = {'lower': -2.0, 'upper': 2.0, 'velocity': 2.0, 'acceleration': 20.0}
    names = ['joint1/position', 'joint2/position', 'gripper/position']
    return {
        'name': 'small',
        'rate_hz': 20.0,
        'horizon': 50,
        'image_size': 32,
        'sync_tolerance_s': 0.5,
        'cameras': [
            {'name': 'scene', 'topic': 'scene/image_raw/compressed', 'transport': 'compressed', 'max_age_s': 0.5},
            {'name': 'wrist', 'topic': 'wrist/image_raw', 'transport': 'raw', 'kind': 'wrist', 'max_age_s': 0.5},
        ],
        'state_streams': [{'name': 'joint_states', 'topic': 'joint_states', 'type': 'joint_state', 'max_age_s': 0.5}],
        'state': [{'name': name, 'unit': 'rad', 'source': 'joint_states'} for name in names],
        'actions': [
            *({'name': name, 'limits': limits} | joint for name in names),
            {
                'name': 'base/linear/x/velocity',
                'unit': 'm/s',
                'representation': 'absolute',
                'limits': {'lower': -0.5, 'upper': 0.5, 'velocity': 0.5, 'acceleration': 5.0},
            },
        ],
        'outputs': [
            {
                'name': 'arm',
                'kind': 'joint_trajectory',
                'topic': 'arm_controller/joint_trajectory',
                'columns': names[:2],
                'options': {'window_s': 0.3, 'interpolation': 'cubic'},
            },
            {
                'name': 'hand',
                'kind': 'forward_command',
                'topic': 'hand_controller/commands',
                'columns': names[2:],
                'role': 'gripper',
            },
            {
                'name': 'base',
                'kind': 'twist_stamped',
                'topic': 'base_controller/cmd_vel',
                'columns': ['base/linear/x/velocity'],
                'frame_id': 'base_link',
            },
        ],
    }


@functools.cache
def node_server() -> Any:
    """What starts the nodes of all rigs of this process."""
    spec = importlib.util.spec_from_file_location('node_server', ROOT / 'tests' / 'node_server.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    server = module.NodeServer()
    atexit.register(server.close)
    return server


class Process:
    """One node of the stack as a process, with its output."""

    def __init__(self, module: str, log: Path, parameters: dict[str, Any], arguments: list[str] | None = None) -> None:
        command = ['--ros-args']
        for name, value in parameters.items():
            text = str(value).lower() if isinstance(value, bool) else str(value)
            command += ['-p', f'{name}:={text}']
        self.log = log
        self.popen = node_server().start(module, [*command, *(arguments or [])], log)

    def send(self, number: int) -> int:
        """Sends a signal; the steady time at which it was sent."""
        now_ns = time.monotonic_ns()
        self.popen.send_signal(number)
        return now_ns

    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def end(self) -> int:
        """Ends it kindly, or else by force; its exit status."""
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGINT)
        try:
            return self.popen.wait(5.0)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


class Rig:
    """The robot, an observer of everything that is said, and the processes under test."""

    SLOW_S = 0.5  # what a busy machine may add to a reaction

    def __init__(self, folder: Path, contract: dict[str, Any] | None = None, sim_time: bool = False) -> None:
        self.folder = folder
        self.contract_file = folder / 'small.yaml'
        plain = contract or small_robot()
        streams = {kind: [each | PATIENT_STREAM for each in plain[kind]] for kind in ('cameras', 'state_streams')}
        plain = plain | streams | {'sync_tolerance_s': PATIENT_STREAM['max_age_s']}
        self.contract_file.write_text(yaml.safe_dump(plain))
        self.contract = Contract.parse(plain)
        self.processes: list[Process] = []
        self.context = rclpy.Context()
        rclpy.init(context=self.context)
        overrides = [Parameter('width', value=64), Parameter('height', value=48)]
        overrides += [Parameter('use_sim_time', value=True)] if sim_time else []
        self.robot = SyntheticRobot(self.contract, context=self.context, parameter_overrides=overrides)
        self.commands: dict[str, list[tuple[int, Any]]] = defaultdict(list)  # (steady ns, message) by output
        self.robot.heard = lambda output, steady_ns, message: self.commands[output].append((steady_ns, message))
        self.node = rclpy.create_node('observer', context=self.context)
        self.statuses: list[tuple[int, PolicyStatus]] = []
        self.chunks: list[tuple[int, ActionChunk]] = []
        self.dry_chunks: list[tuple[int, ActionChunk]] = []
        self.events: list[tuple[int, SafetyEvent]] = []
        self.states: list[tuple[int, String]] = []
        self.diagnostics: list[tuple[int, DiagnosticArray]] = []
        deep = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
        self._hear(PolicyStatus, 'policy_node/status', self.statuses, deep)
        self._hear(ActionChunk, 'policy_node/action_chunk', self.chunks, deep)
        self._hear(ActionChunk, 'policy_node/dry_run_chunk', self.dry_chunks, deep)
        self._hear(SafetyEvent, 'chunk_executor/safety_event', self.events, deep)
        self._hear(String, 'chunk_executor/state', self.states, LATCHED)
        self._hear(DiagnosticArray, '/diagnostics', self.diagnostics, deep)
        self._between = threading.Lock()
        self._executor = make_executor(self.context)
        self._executor.add_node(self.robot)
        for controller in self.robot.companions():
            self._executor.add_node(controller)
        self._executor.add_node(self.node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()
        self._calls = ServiceCalls(self.node, lambda: time.sleep(0.02))

    def _hear(self, kind: Any, topic: str, kept: list[Any], qos: QoSProfile) -> None:
        self.node.create_subscription(kind, topic, lambda message: kept.append((time.monotonic_ns(), message)), qos)

    def _spin(self) -> None:
        while not self._stop.is_set():
            with self._between:
                self._executor.spin_once(timeout_sec=0.05)
            time.sleep(0.0005)  # whoever waits for the lock gets it

    def start(self, name: str, **parameters: Any) -> Process:
        """Starts policy_node or chunk_executor for this robot, or the recorder."""
        given = parameters if name == 'recorder' else {'robot': self.contract_file} | parameters
        process = Process(NODES[name], self.folder / f'{name}.log', given)
        self.processes.append(process)
        return process

    def start_policy(self, **parameters: Any) -> Process:
        """A policy without a model that moves, unless told otherwise."""
        usual = {'backend': 'commissioning', 'dry_run': False, 'run_on_activate': True, 'motion': 'sine'}
        return self.start('policy_node', **(usual | {'amplitude': 0.4, 'execute_steps': 10} | parameters))

    def start_executor(self, **parameters: Any) -> Process:
        """An enabled executor."""
        return self.start('chunk_executor', **({'enabled': True} | PATIENT | parameters))

    def until(self, what: str, condition: Callable[[], Any], seconds: float = 10.0) -> Any:
        """Waits until `condition()` is true and returns it; fails with `what` and the logs."""
        end = time.monotonic() + seconds
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > end:
                logs = '\n'.join(f'--- {each.log.name}\n{each.text()}' for each in self.processes)
                raise AssertionError(f'not within {seconds:g} s: {what}\nlast state: {self.state}\n{logs}')
            time.sleep(0.005)

    @property
    def state(self) -> str:
        """What the executor says it does."""
        return self.states[-1][1].data if self.states else ''

    @property
    def status(self) -> PolicyStatus:
        """The newest status of the policy node."""
        return self.statuses[-1][1] if self.statuses else PolicyStatus()

    def running(self) -> None:
        """Waits until commands flow."""
        self.until('the executor runs', lambda: self.state == 'run')
        self.until('the arm moves', lambda: len(self.commands['arm']) > 5)

    def holds(self, after_ns: int, seconds: float = 5.0) -> int:
        """Waits for the first hold of the arm after a time; its own time."""
        return self.until('the arm holds', lambda: next((t for t, _ in self.hold_points(after_ns)), 0), seconds)

    def hold_delay_ms(self, after_ns: int) -> float:
        """How long after a steady time the first hold began, by its own stamp: threads of a test may be late."""
        self.holds(after_ns)
        between_ns = time.time_ns() - time.monotonic_ns()
        return (stamp_ns(self.hold_points(after_ns)[0][1].header) - between_ns - after_ns) / 1e6

    def hold_points(self, after_ns: int) -> list[tuple[int, Any]]:
        """Trajectories after a time that only brake; those of a run follow a chunk for 150 ms before they do."""
        sent = [(t, m) for t, m in list(self.commands['arm']) if t >= after_ns]
        return [(t, m) for t, m in sent if time_ns(m.points[-1].time_from_start) < FOLLOWED_NS]

    def call(self, kind: Any, name: str, request: Any = None, seconds: float = 5.0) -> Any:
        """Calls a service."""
        return self._calls.call(kind, name, request or kind.Request(), seconds)

    def change_state(self, node: str, transition: int) -> bool:
        """One transition of a node's lifecycle; whether it was made."""
        return change_state(self._calls, node, transition)

    def remove(self, node: Any) -> None:
        """Ends one of the robot's nodes, between two turns of the thread that spins it."""
        with self._between:
            self._executor.remove_node(node)
            node.destroy_node()

    def restart_controller(self, output: str, moved: dict[str, float]) -> None:
        """Ends the node of a controller, moves joints meanwhile, and starts the controller again."""
        self.remove(self.robot.controllers.pop(output))
        self.robot.release(output)
        time.sleep(0.5)
        self.robot.positions.update(moved)
        with self._between:
            self._executor.add_node(self.robot.connect(output))

    def close(self) -> None:
        """Ends everything."""
        for process in self.processes:
            process.end()
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self.robot.close()
        self.robot.destroy_node()
        rclpy.shutdown(context=self.context)


@contextmanager
def make(folder: Path, **options: Any) -> Iterator[Rig]:
    """A rig for the length of a `with` block."""
    rig = Rig(folder, **options)
    try:
        yield rig
    finally:
        rig.close()
