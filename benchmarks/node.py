"""The node and the executor on this machine: stamp to chunk, lateness, CPU, seams. Writes benchmarks/results/node.json.

    python benchmarks/node.py [--chunks 500] [--cases 0 1 2 3 4]

A robot made of topics sends three 640x480 cameras at 30 Hz, noisy as real ones (a JPEG has about 100 kB), and joint
states at 100 Hz; the commissioning backend stands for an engine of 0, 20 and 100 ms, waiting (as for a GPU) or
computing (as on a CPU). Processes and DDS are real. Times are without the engine and up to the published chunk: from
the stamp of the newest picture, all three having one, and from that of the oldest input, which is a joint state up to
10 ms old. Where others use the machine, `chrt -r 20` in front lets these processes go first, all of them alike: a load
of our own processes, as near as that can be had. With --cases the others keep the results that the file has.
Seams need chunks that disagree: planner and follower run on a policy with noise, on a clock of their own.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ki_common.nodes import NODES

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULT = ROOT / 'benchmarks' / 'results' / 'node.json'
CASES = [
    ('compressed', 0.0, 'wait'),
    ('compressed', 0.02, 'wait'),
    ('compressed', 0.1, 'wait'),
    ('compressed', 0.1, 'compute'),
    ('raw', 0.02, 'wait'),
]
EXECUTE_S = 0.1  # of a chunk, before the next is due: ten chunks a second; twice as much with a slow engine
NOISE = 10.0  # grey levels
RATE_HZ = 20.0  # of the steps of bimanual_mobile
CHUNKS_A_S = 4.0  # at the least, of every case
TICK = os.sysconf('SC_CLK_TCK')


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--chunks', type=int, default=500, help='of every case')
    parser.add_argument('--cases', type=int, nargs='*', default=range(len(CASES)), help='by number')
    parser.add_argument('--out', type=Path, default=RESULT)
    arguments = parser.parse_args()
    from ki_policy_node.common.ros import use_dds_profile

    use_dds_profile('loopback')
    os.environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    known = json.loads(arguments.out.read_text())['cases'] if arguments.out.is_file() else []
    made = {each['case']: each for each in known if 'case' in each}
    about = machine()
    before = 'chrt -r 20 ' if os.sched_getscheduler(0) == os.SCHED_RR else ''
    for number in arguments.cases:
        made[number] = {'case': number, **case(*CASES[number], arguments.chunks)}
        print(json.dumps(made[number], indent=2), flush=True)
    cases = [made[number] for number in sorted(made)]
    result = {
        'command': f'{before}python benchmarks/node.py --chunks {arguments.chunks}',
        'machine': about,
        'cases': cases,
        'seams': {mode: seams(mode) for mode in ('latest', 'queue', 'temporal_ensemble', 'rtc')},
        'targets': {
            'picture to chunk p50 < 5 ms': max(each['picture to chunk p50 [ms]'] for each in cases) < 5.0,
            'picture to chunk p99 < 12 ms': max(each['picture to chunk p99 [ms]'] for each in cases) < 12.0,
            'lateness p99 < 3 ms': max(each['lateness p99 [ms]'] for each in cases) < 3.0,
        },
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=2) + '\n')
    print(json.dumps(result, indent=2))
    return 0


def machine() -> dict[str, Any]:
    """What the numbers depend on, other work on the machine included."""
    return {
        'cpus': os.cpu_count(),
        'processor': platform.processor() or platform.machine(),
        'python': platform.python_version(),
        'load average before': [round(value, 2) for value in os.getloadavg()],
        'note': 'the load average counts work that is not ours: above 1 before the start, others were running',
    }


def robot_file(folder: Path, transport: str) -> Path:
    """bimanual_mobile, its cameras as `transport`."""
    from ki_robot.contract.contract import load_contract

    plain: dict[str, Any] = load_contract('bimanual_mobile').to_dict()
    for camera in plain['cameras']:
        camera['transport'] = transport
    path = folder / 'robot.yaml'
    path.write_text(yaml.safe_dump(plain))
    return path


def case(transport: str, latency: float, latency_kind: str, chunks: int) -> dict[str, Any]:
    """One run of robot, node and executor, of so many chunks."""
    with tempfile.TemporaryDirectory() as name:
        robot = robot_file(Path(name), transport)
        policy = {'backend': 'commissioning', 'motion': 'sine', 'amplitude': 0.2, 'latency': latency}
        policy |= {
            'latency_kind': latency_kind,
            'dry_run': False,
            'run_on_activate': True,
            'execute_steps': round((EXECUTE_S if latency < EXECUTE_S else 2 * EXECUTE_S) * RATE_HZ),
            'robot': robot,
        }
        programs = {
            'synthetic_robot': start('synthetic_robot', {'robot': robot, 'noise': NOISE}),
            'policy_node': start('policy_node', policy),
            'chunk_executor': start('chunk_executor', {'robot': robot, 'enabled': True}),
        }
        try:
            time.sleep(4.0)
            before, begin = {name: cpu(p.pid) for name, p in programs.items()}, time.monotonic()
            busy_before = busy()
            values = listen(chunks, chunks / CHUNKS_A_S)
            wall = time.monotonic() - begin
            shares = {name: round((cpu(p.pid) - before[name]) / wall, 3) for name, p in programs.items()}
            others = (busy() - busy_before) / wall - sum(shares.values())
        finally:
            for program in programs.values():
                program.send_signal(signal.SIGINT)
            for program in programs.values():
                program.wait(10.0)
    wanted = [
        name
        for name in values
        if name.startswith(
            ('stamp to chunk', 'picture to chunk', 'node p', 'lateness', 'late ticks', 'chunks', 'inference')
        )
    ]
    return {
        'cameras': f'3 x 640x480 {transport}',
        'engine': f'{latency * 1e3:g} ms, {latency_kind}',
        **{name: float(values[name]) for name in wanted},
        'state of the executor': values.get('state', ''),
        'scheduling of the executor': values.get('scheduling', ''),
        'cpu share of one core': shares,
        'cores that other programs used': round(max(0.0, others), 2),
        'load average': round(os.getloadavg()[0], 2),
    }


def start(module: str, parameters: dict[str, Any]) -> subprocess.Popen[bytes]:
    """One node as a process."""
    command = [sys.executable, '-m', NODES[module], '--ros-args']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={str(value).lower() if isinstance(value, bool) else value}']
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'OPENBLAS_NUM_THREADS': '1'}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def busy() -> float:
    """Seconds of processor time that all programs have used: user, nice, system, interrupts."""
    user, nice, system, _, _, *interrupts = map(int, Path('/proc/stat').read_text().splitlines()[0].split()[1:8])
    return (user + nice + system + sum(interrupts)) / TICK


def listen(chunks: int, seconds: float) -> dict[str, str]:
    """The last values that both nodes put into /diagnostics, once so many chunks are out, or after some time."""
    import rclpy
    from diagnostic_msgs.msg import DiagnosticArray

    rclpy.init()
    node = rclpy.create_node('benchmark')
    found: dict[str, str] = {}

    def keep(message: Any) -> None:
        for line in message.status:
            if line.name in ('policy_node: policy', 'chunk_executor: commands'):
                found.update({each.key: each.value for each in line.values})

    node.create_subscription(DiagnosticArray, '/diagnostics', keep, 10)
    end = time.monotonic() + seconds
    while time.monotonic() < end and int(found.get('chunks published', 0)) < chunks:
        rclpy.spin_once(node, timeout_sec=0.2)
    node.destroy_node()
    rclpy.shutdown()
    return found


def cpu(pid: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def seams(mode: str, runs: int = 40) -> dict[str, Any]:
    """What is commanded where noisy chunks meet, 0.1 s late: excess over the limits, and the jumps.

    `chunk` is the jump between the chunks themselves, `command` what the executor's ticks of 10 ms make of it.
    """
    from ki_policy_node.cycle.cadence import due_after
    from ki_policy_node.cycle.continuation import Planner, Timing
    from ki_policy_node.executor.chunk_follower import Follower
    from ki_policy_node.executor.safety import Rules
    from ki_robot.contract.contract import load_contract
    from ki_robot.observation.observation import Observation
    from ki_vla.policy.inferred import Inferred
    from ki_vla.policy.serving import Serving

    contract = load_contract('bimanual_mobile')
    names = contract.action_names
    rng = np.random.default_rng(0)
    step_ns, tick_ns, late_ns = contract.step_ns, 10_000_000, 100_000_000

    class Noisy:
        """A slow swing, seen with an offset of 0.02 that is drawn anew for every chunk."""

        policy_id, backend = 'noisy', 'none'
        serving = Serving.for_horizon(contract.horizon, max_delay=6)

        def __init__(self) -> None:
            self.contract = contract

        def infer(self, observation: Observation, *_: object) -> Inferred:
            times = (observation.state_stamp_ns + step_ns * np.arange(contract.horizon)) / 1e9
            swing = 0.03 + 0.02 * np.sin(2.0 * times)[:, None] * np.ones(len(names))
            return Inferred(swing + rng.normal(0.0, 0.02, len(names)))

    limits = [column.limits for column in contract.actions]
    follower = Follower(
        contract, limits, Rules(status_timeout_ns=0, state_timeout_ns=0, max_tracking_error=0.0), tick_ns
    )
    planner = Planner(Noisy(), Timing(mode, 10))
    now = 10**15
    pose, setpoints, jumps = np.full(len(names), 0.03), [], []
    follower.enable(True, now)
    waiting: list[tuple[int, Any]] = []
    while len(jumps) < runs:
        now += tick_ns
        streams = {column.source for column in contract.state}
        for stream in streams:
            follower.on_state(stream, dict(zip(names, pose.tolist(), strict=True)), now, now)
        due_ns = due_after(planner.current, planner.timing, planner.latency.expected_ns) if planner.current else 0
        if now >= due_ns and not waiting:
            planned = planner.plan(Observation(now, {}, {}, pose, now), 0, lambda at=now: at + late_ns)
            waiting.append((now + late_ns, planned))
        if waiting and now >= waiting[0][0]:
            planned = waiting.pop()[1]
            planner.commit(planned)
            follower.on_chunk(planned.chunk, now, now)
            if planned.seam is not None:
                jumps.append((np.abs(planned.seam.position_jump_N), np.abs(planned.seam.velocity_jump_N)))
        command = follower.tick(now, now)
        if command is not None:
            pose = command.setpoint_N.copy()
            setpoints.append(pose)
    joints = [index for index, name in enumerate(names) if name.endswith('joint1/position')]
    speed = np.diff(np.array(setpoints)[:, joints], axis=0) / (tick_ns / 1e9)
    change = np.abs(np.diff(speed, axis=0)) / (tick_ns / 1e9)
    limit = contract.actions[joints[0]].limits
    assert limit.velocity is not None
    assert limit.acceleration is not None
    position = np.array([each[0][joints] for each in jumps])
    velocity = np.array([each[1][joints] for each in jumps])
    over_speed = max(0.0, float(np.abs(speed).max()) - limit.velocity)
    over_change = max(0.0, float(change.max()) - limit.acceleration)
    return {
        'chunk position jump p50, max [rad]': [round(float(np.median(position)), 4), round(float(position.max()), 4)],
        'chunk velocity jump p50, max [rad/s]': [round(float(np.median(velocity)), 4), round(float(velocity.max()), 4)],
        'command step beyond velocity limit [rad/s]': round(over_speed, 6),
        'command change beyond acceleration limit [rad/s2]': round(over_change, 4),
        'command velocity change in 10 ms max [rad/s]': round(float(change.max()) * tick_ns / 1e9, 4),
    }


if __name__ == '__main__':
    raise SystemExit(main())
