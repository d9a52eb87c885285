"""The simulator's node: does real time hold, and what does it cost? Writes benchmarks/results/sim_node.json.

    python benchmarks/sim_node.py [--seconds 12]

The simulator serves three cameras as JPEG, joint states and odometry to a listener; in the driven cases the chunk
executor commands it at 100 Hz, with the expert's rehearsed plan. CPU is what the simulator's process uses of one core.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
RESULT = ROOT / 'benchmarks' / 'results' / 'sim_node.json'
TICKS = os.sysconf('SC_CLK_TCK')
# name -> (rows and columns, pictures a second, driven by the executor, speed)
CASES = {
    '96 px at 20 Hz, idle': (96, 20.0, False, 1.0),
    '96 px at 20 Hz, driven': (96, 20.0, True, 1.0),
    '128 px at 20 Hz, driven': (128, 20.0, True, 1.0),
    '224 px at 20 Hz, driven': (224, 20.0, True, 1.0),
    '96 px at 20 Hz, free-running': (96, 20.0, False, 0.0),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seconds', type=float, default=12.0, help='of every case')
    parser.add_argument('--out', type=Path, default=RESULT)
    options = parser.parse_args()
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    cases = {}
    for name, (size, rate, driven, speed) in CASES.items():
        cases[name] = case(size, rate, driven, speed, options.seconds)
        print(f'{name:<30} {cases[name]}', flush=True)
    asked = [figures for name, figures in cases.items() if name.startswith(('96', '128')) and 'free' not in name]
    result = {
        'command': f'python benchmarks/sim_node.py --seconds {options.seconds:g}',
        'machine': f'{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}',
        'cases': cases,
        'targets': {
            'real-time factor 1.0 (within 2 %)': all(abs(each['real-time factor'] - 1.0) < 0.02 for each in asked),
            'less than 1.2 cores': all(each['cores'] < 1.2 for each in asked),
        },
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')
    print(json.dumps(result['targets']))
    return 0


def case(size: int, rate: float, driven: bool, speed: float, seconds: float) -> dict[str, Any]:
    """One configuration, measured from outside."""
    from ki.stack.sim_stack import Stack, program, running

    clock = speed != 1.0
    sim = {'width': size, 'height': size, 'camera_rate': rate, 'speed': speed, 'clock': clock, 'task': 'bus_table'}
    executor = Stack(None, plan=True).programs()[1]
    programs = [program('sim_robot', sim | {'operator': 'plan' if driven else 'none'})]
    programs += [executor] if driven else []
    with tempfile.TemporaryDirectory() as folder, running(programs, Path(folder) / 'log') as port:
        heard = listen(port)
        said(port)
        if driven:
            port.switch('chunk_executor/enable', True)
            assert port.switch('sim_robot/operate', True)[0]
        pid = port.pid('sim_robot')
        spin(port, 2.0)
        before, begin, used = said(port), time.monotonic(), cpu_s(pid)
        counts, load = {name: len(kept) for name, kept in heard.items()}, os.getloadavg()[0]
        spin(port, seconds)
        after, passed, used = said(port), time.monotonic() - begin, cpu_s(pid) - used
        new = {name: kept[counts[name] :] for name, kept in heard.items()}

    def rate_of(count: float) -> float:
        return round(count / passed, 1)

    return {
        'real-time factor': round((after['passed_s'] - before['passed_s']) / passed, 3),
        'cores': round(used / passed, 3),
        'joint states heard [Hz]': rate_of(len(new['joint_states'])),
        'pictures of a camera heard [Hz]': rate_of(len(new['head'])),
        'pictures left out [Hz]': rate_of(after['left_out'] - before['left_out']),
        'commands [Hz]': rate_of(after['commands'] - before['commands']),
        'load average of the machine': round(load, 1),
    }


def said(port: Any) -> dict[str, Any]:
    """Counters of the simulator."""
    found: dict[str, Any] = json.loads(port.trigger('sim_robot/success')[1])
    return found


def listen(port: Any) -> dict[str, list[int]]:
    """Stamps of what the simulator sends; pictures are not decoded."""
    from sensor_msgs.msg import CompressedImage, JointState

    from ki_robot.messages.arrays import stamp_ns

    heard: dict[str, list[int]] = {'joint_states': [], 'head': [], 'left_wrist': [], 'right_wrist': []}
    for name, kept in heard.items():
        kind, topic = JointState, name
        if name != 'joint_states':
            kind, topic = CompressedImage, f'{name}_camera/image_raw/compressed'
        port.node.create_subscription(kind, topic, lambda m, kept=kept: kept.append(stamp_ns(m.header)), 500)
    return heard


def spin(port: Any, seconds: float) -> None:
    """Listens for a time."""
    import rclpy

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        rclpy.spin_once(port.node, timeout_sec=0.02)
    port.check()


def cpu_s(pid: int) -> float:
    """User and system time of a process with all its threads."""
    fields = Path(f'/proc/{pid}/stat').read_text(encoding='utf-8').rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


if __name__ == '__main__':
    raise SystemExit(main())
