"""The stack for hours, with something broken every few seconds: what grows, and how late each hold is.

    python benchmarks/soak.py [--hours 1] [--out benchmarks/results/soak.json]

A robot made of topics, a policy, the executor and the recorder with its black box are processes in a ROS domain of
their own. Half of the time the policy is without a model, half of the time a small random one. For four fifths of each
half a stream dies, the e-stop is pressed, or the policy is paused as behind a network that is cut; in the last fifth
the policy is killed (SIGKILL) and started again, over and over. Ctrl-C writes the result so far; so does every minute.

A hold is as late as its stamp is after its cause: the kill, the pause, the press of the e-stop, or the moment at which
the last message of a stream became older than the contract allows. A process of real-time priority that only sleeps
tells when the machine itself stood still, as virtual ones do. Growth is the slope of medians of a minute after Theil
and Sen, with its interval of 95 %, after a warm-up of a quarter of a process's life, at most ten minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ki_common.files import write_text
from ki_common.nodes import NODES
from ki_robot.contract.contract import load_contract

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / 'benchmarks' / 'results' / 'soak.json'
SAMPLE_S, SAVE_S, EVERY_S = 5.0, 60.0, 12.0
HALF_S, KILLING = 1800.0, 0.2  # a policy's turn, and the last part of it, in which it is killed
LATE_S, WANTED = 0.3, 0.99
STATE_TIMEOUT_S, CAMERA_AGE_S = 0.2, 0.5
BROKEN = ('camera', 'estop', 'joint_states', 'pause')  # in turn
POLICIES = ('commissioning', 'torch')
RESET = 'chunk_executor/reset_fault'
GIVE_UP_S = {'hold': 5.0, 'run': 60.0}
GROWS = {'memory_mb': (1.0, 10.0), 'handles': (1.0, 10.0), 'threads': (1.0, 10.0)}  # an hour: grows above, steady below
SHARED_GROWS = (10.0, 100.0)  # MB an hour; a segment has 32 MiB
SEGMENT = re.compile(r'(/dev/shm/(?:fastrtps|fastdds)_[0-9a-f]{16})$', re.MULTILINE)
LEAST_MINUTES = 8  # after the warm-up, for a slope
SLEEP_S, STALL_S = 0.005, 0.05
TICK = os.sysconf('SC_CLK_TCK')


@dataclass
class Hold:
    """One fault, and the hold that it must lead to."""

    kind: str
    policy: str
    at_h: float
    late_s: float | None = None  # None: it never came
    reason: str = ''
    stood_still_s: float = 0.0  # of that time the machine itself
    back_s: float | None = None  # from the end of the fault to the run; None: it never came


@dataclass
class Life:
    """One process from its start to its end, sampled."""

    name: str
    pid: int
    start_s: float
    rows: list[tuple[float, float, int, int, float]] = field(default_factory=list)  # age, MB, handles, threads, CPU

    def sample(self) -> None:
        """One row; a process that has ended has none."""
        with contextlib.suppress(OSError):
            here = Path(f'/proc/{self.pid}')
            lines = dict(line.split(':\t', 1) for line in (here / 'status').read_text().splitlines() if ':\t' in line)
            ticks = (here / 'stat').read_text().rpartition(')')[2].split()[11:13]
            handles = len(os.listdir(here / 'fd'))
            if 'RssAnon' in lines:
                # Its own: pages of libraries come and go as the kernel needs them, shared memory is counted apart.
                memory = sum(int(lines[name].split()[0]) for name in ('RssAnon', 'VmSwap')) / 1024
                age_s = time.monotonic() - self.start_s
                self.rows.append((age_s, memory, handles, int(lines['Threads']), sum(map(int, ticks)) / TICK))

    def segments(self) -> set[str]:
        """The shared memory of Fast DDS that it has mapped; empty for a process that has ended."""
        with contextlib.suppress(OSError):
            return set(SEGMENT.findall(Path(f'/proc/{self.pid}/maps').read_text()))
        return set()


class Stalls:
    """When the machine itself stood still: a process of real-time priority that only sleeps was late by much."""

    def __init__(self, file: Path) -> None:
        self._file = file
        with file.open('wb') as stream:
            self._process = subprocess.Popen([sys.executable, __file__, '--sleep'], stdout=stream)

    def found(self) -> list[tuple[float, float]]:
        """(end as a time stamp, length) of each, in seconds."""
        lines = [line.split() for line in self._file.read_text().splitlines()]
        return [(float(end), float(length)) for end, length in lines]

    def within(self, from_ns: int, until_ns: int) -> float:
        """How much of a time the machine stood still [s]."""
        begin, end = from_ns / 1e9, until_ns / 1e9
        return round(sum(max(0.0, min(end, at) - max(begin, at - long)) for at, long in self.found()), 4)

    def end(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()

    @staticmethod
    def sleep() -> None:
        """The process: sleeps, and says how long it was not woken."""
        with contextlib.suppress(PermissionError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
        while True:
            before_s = time.monotonic()
            time.sleep(SLEEP_S)
            late_s = time.monotonic() - before_s - SLEEP_S
            if late_s > STALL_S:
                print(f'{time.time():.3f} {late_s:.3f}', flush=True)


def slope(rows: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Growth an hour of (age [s], value) after the warm-up, from medians of a minute; empty where those are too few."""
    from scipy.stats import theilslopes

    if not rows:
        return {}
    end_s = rows[-1][0]
    minutes: dict[int, list[float]] = {}
    for age_s, value in rows:
        if age_s >= min(600.0, end_s / 4):
            minutes.setdefault(int(age_s // 60), []).append(value)
    if len(minutes) < LEAST_MINUTES:
        return {}
    found = theilslopes([statistics.median(each) for each in minutes.values()], [minute / 60 for minute in minutes])
    middle, low, high = (round(float(each), 3) for each in (found.slope, found.low_slope, found.high_slope))
    return {'an_hour': middle, 'low': low, 'high': high, 'minutes': len(minutes)}


def growth_of(found: Mapping[str, Any], limits: tuple[float, float]) -> str:
    """`grows` where that is shown, `steady` where more than a little is ruled out, else that nobody can tell."""
    if not found:
        return 'too short to tell'
    if found['low'] > limits[0]:
        return 'grows'
    return 'steady' if found['high'] < limits[1] else 'too short to tell'


def about(life: Life) -> dict[str, Any]:
    """What a life says, for the result."""
    seconds = life.rows[-1][0] - life.rows[0][0]
    said: dict[str, Any] = {'process': life.name, 'hours': round(life.rows[-1][0] / 3600, 3)}
    said['cores'] = round((life.rows[-1][4] - life.rows[0][4]) / seconds, 3) if seconds else None
    for place, name in enumerate(GROWS, start=1):
        said[name] = series([(row[0], row[place]) for row in life.rows], GROWS[name])
    return said


def series(rows: Sequence[tuple[float, float]], limits: tuple[float, float]) -> dict[str, Any]:
    """A quantity over its time: ends, most, slope, and whether that is growth."""
    values, found = [value for _, value in rows], slope(rows)
    ends = {'first': round(values[0], 1), 'last': round(values[-1], 1), 'most': round(max(values), 1)} if rows else {}
    return ends | {'slope': found, 'verdict': growth_of(found, limits)}


def counted(holds: Sequence[Hold]) -> dict[str, Any]:
    """How late the holds were, by kind and together."""
    said: dict[str, Any] = {}
    for kind in ('all', *dict.fromkeys(each.kind for each in holds)):
        some = [each for each in holds if kind in ('all', each.kind)]
        late = [each.late_s for each in some if each.late_s is not None]
        back = [each.back_s for each in some if each.back_s is not None]
        moving = [each for each in some if each.stood_still_s == 0.0]
        said[kind] = {
            'faults': len(some),
            'held': len(late),
            'went_on': len(back),
            'median_s': round(statistics.median(late), 3) if late else None,
            'worst_s': round(max(late), 3) if late else None,
            'within_0.3_s': share(some),
            'within_0.3_s_where_the_machine_never_stood_still': share(moving),
            'back_median_s': round(statistics.median(back), 2) if back else None,
        }
    return said


def share(holds: Sequence[Hold]) -> float | None:
    """The share that came in time; one that never came did not."""
    in_time = sum(each.late_s is not None and each.late_s <= LATE_S for each in holds)
    return round(in_time / len(holds), 4) if holds else None


def verdict(lives: Sequence[Mapping[str, Any]], shared: Mapping[str, Any], holds: Sequence[Hold]) -> dict[str, Any]:
    """The claims of this program, each yes, no or unknown."""
    words: dict[tuple[str, str], set[str]] = {('shared', 'memory'): {shared['verdict']}}
    for life in lives:
        for name in GROWS:
            words.setdefault((life['process'], name), set()).add(life[name]['verdict'])
    steady = all('steady' in each for each in words.values())
    grows = 'no' if any('grows' in each for each in words.values()) else 'yes' if steady else 'too short to tell'
    in_time = share(holds)
    return {
        'nothing_grows': grows,
        'holds_within_0.3_s': None if in_time is None else in_time >= WANTED,
        'every_fault_was_a_hold': all(each.late_s is not None for each in holds),
        'went_on_after_every_fault': all(each.back_s is not None for each in holds),
    }


def robot_file(folder: Path) -> Path:
    """arm_single with longer ages, near limits for a policy of noise, and a gripper that needs no action server."""
    plain: dict[str, Any] = load_contract('arm_single').to_dict() | {'sync_tolerance_s': 2.0}
    for camera in plain['cameras']:
        camera['max_age_s'] = CAMERA_AGE_S
    plain['state_streams'][0]['max_age_s'] = STATE_TIMEOUT_S
    for column in plain['actions'][:-1]:
        column['limits'] |= {'lower': -0.1, 'upper': 0.1}
    plain['actions'][-1]['limits'] |= {'velocity': 2.0}
    plain['outputs'][1] |= {'kind': 'forward_command', 'topic': 'gripper_controller/commands', 'options': {}}
    path = folder / 'soak_arm.yaml'
    path.write_text(yaml.safe_dump(plain), encoding='utf-8')
    return path


class Stack:
    """The processes, and their samples."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.robot = folder, robot_file(folder)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.lives: list[Life] = []
        self.shared: list[tuple[float, float]] = []  # time since the start, MB
        self._segments: set[str] = set()  # that any of them ever had
        self._start_s = time.monotonic()
        self._log = (folder / 'nodes.log').open('ab')
        self.stalls = Stalls(folder / 'stalls.txt')
        make = [
            '-m',
            'ki.main',
            'bundle',
            'untrained',
            str(folder / 'bundle'),
            '--robot',
            str(self.robot),
            '--overwrite',
        ]
        subprocess.run([sys.executable, *make], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    def start(self, name: str, parameters: Mapping[str, Any], label: str = '') -> None:
        """One node as a process."""
        command = [sys.executable, '-m', NODES[name], '--ros-args']
        for key, value in parameters.items():
            command += ['-p', f'{key}:={str(value).lower() if isinstance(value, bool) else value}']
        environment = os.environ | {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=self._log, stderr=self._log, start_new_session=True
        )
        self.running[name] = process
        self.lives.append(Life(label or name, process.pid, time.monotonic()))

    def start_all(self) -> None:
        """Everything but the policy."""
        size = {'camera_rate': 10.0, 'state_rate': 30.0, 'width': 128, 'height': 96}
        self.start('synthetic_robot', {'robot': self.robot} | size)
        executor = {'enabled': True, 'rate': 50.0, 'state_timeout': STATE_TIMEOUT_S}
        self.start('chunk_executor', {'robot': self.robot} | executor)
        kept = {'folder': self.folder / 'bags', 'black_box_folder': self.folder / 'black_box', 'black_box_keep': 3}
        self.start('recorder', kept | {'rotate_s': 60.0, 'min_free_mib': 256, 'task': 'soak'})

    def start_policy(self, backend: str) -> None:
        """A policy that moves the robot as soon as it is there."""
        told = {'robot': self.robot, 'backend': backend, 'dry_run': False, 'run_on_activate': True}
        told |= {'motion': 'sine', 'amplitude': 0.05, 'execute_steps': 10, 'instruction': 'go on', 'seed': 1}
        if backend == 'torch':
            told |= {'bundle': self.folder / 'bundle', 'allow_untrained': True, 'threads': 1}
        self.start('policy_node', told, f'policy_node, {backend}')

    def send(self, name: str, number: signal.Signals) -> None:
        """A signal to one of them; SIGKILL is waited for."""
        process = self.running[name]
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        if number == signal.SIGKILL:
            process.wait(10.0)

    def sample(self) -> None:
        """A row of each that runs, and older recordings away."""
        alive = {process.pid for process in self.running.values() if process.poll() is None}
        for life in self.lives:
            if life.pid in alive:
                life.sample()
                self._segments |= life.segments()
        self.shared.append((time.monotonic() - self._start_s, self._shared_mb()))
        bags = self.folder / 'bags'
        for old in sorted(each for each in bags.glob('*_[0-9]*') if each.suffix != '.partial')[:-3]:
            shutil.rmtree(old, ignore_errors=True)

    def _shared_mb(self) -> float:
        """What is left of the shared memory that any of them ever had, the killed ones too."""
        total = 0
        for segment in self._segments:
            with contextlib.suppress(OSError):
                total += os.stat(segment).st_blocks * 512
        return total / 1e6

    def end(self) -> None:
        """Ends all."""
        for process in self.running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGCONT)
                os.killpg(process.pid, signal.SIGINT)
        for name, process in self.running.items():
            try:
                process.wait(10.0)
            except subprocess.TimeoutExpired:
                self.send(name, signal.SIGKILL)
        self.stalls.end()
        self._log.close()


class Observer:
    """Hears what the executor says, breaks things, and measures."""

    def __init__(self, stack: Stack) -> None:
        import rclpy
        from ki_msgs.msg import ExecutorStatus
        from rclpy.qos import QoSProfile
        from sensor_msgs.msg import CompressedImage, JointState
        from std_msgs.msg import Bool

        from ki_policy_node.common.process import make_executor
        from ki_policy_node.common.service_calls import ServiceCalls
        from ki_policy_node.common.streams import INPUT_QOS
        from ki_robot.messages.arrays import stamp_ns

        self.stack, self.status, self.holds, self.needless = stack, ExecutorStatus(), list[Hold](), list[Any]()
        self._stamp_ns, self._held = stamp_ns, ExecutorStatus.STATE_HOLD
        self._run, self._fault = ExecutorStatus.STATE_RUN, ExecutorStatus.STATE_FAULT
        self._expected, self._hold_ns, self._since_ns = True, 0, 0
        self.began_s = self._sampled_s = time.monotonic()
        self.each_turn: Callable[[], None] = lambda: None
        self.node = rclpy.create_node('soak')
        self._estop = self.node.create_publisher(Bool, 'estop', 10)
        self._bool = Bool
        self.node.create_subscription(ExecutorStatus, 'chunk_executor/status', self._on_status, QoSProfile(depth=100))
        self.last_ns = {'camera': 0, 'joint_states': 0}
        self._streams = {'camera': 'scene', 'joint_states': 'joint_states'}
        self._hear(CompressedImage, 'scene_camera/image_raw/compressed', 'camera', INPUT_QOS)
        self._hear(JointState, 'joint_states', 'joint_states', INPUT_QOS)
        self._executor = make_executor()
        self._executor.add_node(self.node)
        self._calls = ServiceCalls(self.node, self.turn)

    def _hear(self, kind: Any, topic: str, name: str, qos: Any) -> None:
        self.node.create_subscription(
            kind, topic, lambda message: self.last_ns.update({name: self._stamp_ns(message.header)}), qos
        )

    def _on_status(self, message: Any) -> None:
        before, self.status = self.status.state, message
        if message.state not in (self._held, self._fault):
            return
        at_ns = self._stamp_ns(message.header)
        if not self._hold_ns and at_ns >= self._since_ns:
            self._hold_ns = at_ns
        if not self._expected and before == self._run:
            self.needless.append({'at_h': round(self.hours, 4), 'reason': message.reason})

    @property
    def hours(self) -> float:
        """Since the beginning."""
        return (time.monotonic() - self.began_s) / 3600

    def turn(self) -> None:
        """Messages for a moment, and a sample where one is due."""
        self._executor.spin_once(timeout_sec=0.05)
        if time.monotonic() - self._sampled_s >= SAMPLE_S:
            self._sampled_s = time.monotonic()
            self.stack.sample()
        self.each_turn()

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Listens for so long, or until something is so."""
        end_s = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end_s:
                return False
            self.turn()
        return True

    def runs(self) -> bool:
        """Whether the executor follows a policy."""
        return bool(self.status.state == self._run)

    def silence(self, *streams: str) -> None:
        """These streams of the robot send nothing; none: all speak again."""
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        value = Parameter('silent', Parameter.Type.STRING_ARRAY, list(streams)).to_parameter_msg()
        self._calls.call(
            SetParameters, 'synthetic_robot/set_parameters', SetParameters.Request(parameters=[value]), 10.0
        )

    def reset(self) -> None:
        """Releases the e-stop and resets the fault."""
        from std_srvs.srv import Trigger

        self._estop.publish(self._bool(data=False))
        self.wait(10.0, lambda: bool(self._calls.call(Trigger, RESET, Trigger.Request(), 10.0).success))

    def breaks(self, kind: str, policy: str) -> None:
        """One fault: until it is a hold, two seconds more, and back. One that is interrupted does not count."""
        self.wait(GIVE_UP_S['run'], self.runs)
        made = Hold(kind, policy, round(self.hours, 4))
        self._expected, self._hold_ns = True, 0
        self._since_ns = cause_ns = time.time_ns()
        if kind in self._streams:
            self.silence(self._streams[kind])
        elif kind == 'estop':
            self._estop.publish(self._bool(data=True))
        else:
            self.stack.send('policy_node', signal.SIGSTOP if kind == 'pause' else signal.SIGKILL)
        came = self.wait(GIVE_UP_S['hold'], lambda: self._hold_ns > 0)
        if kind in self._streams:
            cause_ns = self.last_ns[kind] + round((CAMERA_AGE_S if kind == 'camera' else STATE_TIMEOUT_S) * 1e9)
        if came:
            made.late_s, made.reason = round((self._hold_ns - cause_ns) / 1e9, 4), self.status.reason
            made.stood_still_s = self.stack.stalls.within(cause_ns, self._hold_ns)
        self.wait(2.0)
        self._mend(kind, policy)
        mended_s = time.monotonic()
        if self.wait(GIVE_UP_S['run'], self.runs):
            made.back_s = round(time.monotonic() - mended_s, 2)
        self.holds.append(made)
        self._expected = False

    def _mend(self, kind: str, policy: str) -> None:
        if kind in self._streams:
            self.silence()
        elif kind == 'estop':
            self.reset()
        elif kind == 'pause':
            self.stack.send('policy_node', signal.SIGCONT)
        else:
            self.stack.start_policy(policy)

    def new_policy(self, policy: str) -> None:
        """Ends the policy that runs, if one does, and waits until the robot follows the new one."""
        self._expected = True
        if 'policy_node' in self.stack.running:
            self.stack.send('policy_node', signal.SIGKILL)
        self.stack.start_policy(policy)
        self.wait(GIVE_UP_S['run'], self.runs)
        self._expected = False


def result(observer: Observer, options: argparse.Namespace, whole: bool) -> dict[str, Any]:
    """All of it so far."""
    lives = [about(life) for life in observer.stack.lives if len(life.rows) > 1 and life.rows[-1][0] > 90.0]
    shared = series(observer.stack.shared, SHARED_GROWS)
    return {
        'command': f'python benchmarks/soak.py --hours {options.hours:g}',
        'machine': {'cores': os.cpu_count(), 'platform': platform.platform(), 'python': platform.python_version()},
        'load_average': [round(each, 2) for each in os.getloadavg()],
        'hours': round(observer.hours, 3),
        'whole': whole,
        'verdict': verdict(lives, shared, observer.holds),
        'holds': counted(observer.holds),
        'late': [asdict(each) for each in observer.holds if each.late_s is None or each.late_s > LATE_S],
        'stuck': [asdict(each) for each in observer.holds if each.back_s is None],
        'holds_without_a_cause': observer.needless,
        'machine_stood_still_s': [length for _, length in observer.stack.stalls.found()],
        'shared_memory_mb': shared,
        'processes': lives,
        'policies_started': sum(life.name.startswith('policy_node') for life in observer.stack.lives),
        'limits': {'an_hour': GROWS | {'shared_memory_mb': SHARED_GROWS}, 'late_s': LATE_S, 'share': WANTED},
    }


def script(hours: float) -> Iterator[tuple[str, float, float]]:
    """(policy, seconds to break things in, seconds of them to kill it in) until the hours are over."""
    left_s, number = hours * 3600, 0
    half_s = min(HALF_S, left_s / 2)
    while left_s > 1.0:
        yield POLICIES[number % 2], half_s * (1 - KILLING), half_s * KILLING
        left_s, number = left_s - half_s, number + 1


def soak(observer: Observer, hours: float) -> None:
    """Everything that is broken, in its order."""
    for policy, breaking_s, killing_s in script(hours):
        observer.new_policy(policy)
        for kinds, seconds in ((BROKEN, breaking_s), (('kill',), killing_s)):
            end_s, number = time.monotonic() + seconds, 0
            while time.monotonic() + EVERY_S < end_s:
                next_s = time.monotonic() + EVERY_S
                observer.breaks(kinds[number % len(kinds)], policy)
                number += 1
                observer.wait(next_s - time.monotonic())
            observer.wait(end_s - time.monotonic())


def main(arguments: list[str] | None = None) -> int:
    """Runs, prints a line a minute, and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--hours', type=float, default=1.0)
    parser.add_argument('--out', type=Path, default=RESULT)
    parser.add_argument('--sleep', action='store_true', help=argparse.SUPPRESS)
    parser.add_argument('--folder', type=Path, help='for recordings and the log of the nodes; else a temporary one')
    options = parser.parse_args(arguments)
    if options.sleep:
        Stalls.sleep()
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    from ki.stack.sim_stack import private_domain
    from ki_policy_node.common.ros import use_dds_profile

    use_dds_profile('loopback')
    os.environ['ROS_DOMAIN_ID'] = str(private_domain())
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix='soak_') as name:
        folder = options.folder or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        stack = Stack(folder)
        rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
        observer = Observer(stack)
        saved_s = time.monotonic()

        def save(whole: bool = False) -> None:
            nonlocal saved_s
            if whole or time.monotonic() - saved_s >= SAVE_S:
                saved_s = time.monotonic()
                found = result(observer, options, whole)
                write_text(options.out, json.dumps(found, indent=1) + '\n')
                every = found['holds']['all']
                memory = {life.name: round(life.rows[-1][1]) for life in stack.lives if life.rows}
                print(f'{observer.hours:.2f} of {options.hours:g} h: {json.dumps(every)}, MB {memory}', flush=True)

        observer.each_turn = save
        whole = False
        try:
            stack.start_all()
            soak(observer, options.hours)
            whole = True
        except KeyboardInterrupt:
            print('Interrupted: the result so far is written.', flush=True)
        finally:
            stack.end()
            found = result(observer, options, whole)
            write_text(options.out, json.dumps(found, indent=1) + '\n')
            observer.node.destroy_node()
            rclpy.try_shutdown()
        print(json.dumps({key: found[key] for key in ('verdict', 'holds', 'holds_without_a_cause')}, indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
