"""What ROS 2 costs between two processes: cameras one way, action chunks back; transports, executors, ways to write.

    python benchmarks/middleware.py [--seconds 8] [--out benchmarks/results/middleware.json]

Every figure of one run comes from one machine in one go; compare within a run. Latency is from the stamp that the
publisher gives an image, before it is written into a message, to the callback that gets it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CAMERAS = ('head', 'left_wrist', 'right_wrist')
RATE_HZ = 30.0
SIZES = ((640, 480), (1280, 720))
HORIZON, COLUMNS = 50, 14
UDP_ONLY = """<profiles xmlns="http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles"><transport_descriptors>
<transport_descriptor><transport_id>udp</transport_id><type>UDPv4</type>
<interfaceWhiteList><address>127.0.0.1</address></interfaceWhiteList></transport_descriptor></transport_descriptors>
<participant profile_name="udp" is_default_profile="true"><rtps>
<userTransports><transport_id>udp</transport_id></userTransports><useBuiltinTransports>false</useBuiltinTransports>
</rtps></participant></profiles>"""


def percentiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    if not seconds:
        return {}
    p50, p99 = np.percentile(np.array(seconds) * 1e3, [50, 99])
    return {'p50_ms': round(float(p50), 3), 'p99_ms': round(float(p99), 3)}


def writers() -> dict[str, Callable[[Any, Any, int], Any]]:
    """Ways to put a uint8 picture into a sensor_msgs/Image: ours, and what first comes to mind."""
    from ki_robot.messages.arrays import fill_image, set_time

    def naive(convert: Callable[[Any], Any]) -> Callable[[Any, Any, int], Any]:
        def fill(message: Any, image: Any, stamp: int) -> Any:
            set_time(message.header.stamp, stamp)
            message.height, message.width, message.encoding = image.shape[0], image.shape[1], 'rgb8'
            message.step = image.shape[1] * 3
            message.data = convert(image)
            return message

        return fill

    return {
        'array': fill_image,
        'bytes': naive(lambda image: image.tobytes()),
        'numpy': naive(lambda image: image.ravel()),
    }


def executor_of(name: str) -> Any:
    """single, multi or events."""
    from rclpy import executors

    if name == 'events':
        from rclpy.experimental import EventsExecutor

        return EventsExecutor()
    return executors.SingleThreadedExecutor() if name == 'single' else executors.MultiThreadedExecutor(2)


def camera_process(width: int, height: int, seconds: float, way: str) -> None:
    """Publishes three cameras at 30 Hz and times the chunks that come back; prints its figures."""
    import rclpy
    from ki_msgs.msg import ActionChunk
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    from ki_robot.messages.arrays import time_ns

    rclpy.init()
    node = rclpy.create_node('cameras')
    publishers = [node.create_publisher(Image, f'{name}_camera/image_raw', qos_profile_sensor_data) for name in CAMERAS]
    returns: list[float] = []

    def back(chunk: Any) -> None:
        returns.append((time.time_ns() - time_ns(chunk.observation_stamp)) / 1e9)

    node.create_subscription(ActionChunk, 'action_chunk', back, 10)
    threading.Thread(target=rclpy.spin, args=(node,), daemon=True).start()
    while not (all(p.get_subscription_count() for p in publishers) and node.count_publishers('action_chunk')):
        time.sleep(0.05)
    time.sleep(0.5)
    fill = writers()[way]
    images = [np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8) for seed in range(4)]
    frames = int(seconds * RATE_HZ)
    start, cpu, late = time.perf_counter(), time.process_time(), 0
    for frame in range(frames):
        left = start + frame / RATE_HZ - time.perf_counter()
        late += left < -1.0 / RATE_HZ
        time.sleep(max(left, 0.0))
        for publisher in publishers:
            publisher.publish(fill(Image(), images[frame % 4], time.time_ns()))
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    time.sleep(0.5)
    figures = {'sent': frames * len(CAMERAS), 'fps': round(frames / wall, 2), 'late_frames': late}
    print(
        json.dumps({**figures, 'cpu': round(cpu / wall, 3), 'chunk_back': percentiles(returns), 'chunks': len(returns)})
    )
    os._exit(0)  # the spinning thread has nothing left to say


def policy_process(executor_name: str) -> None:
    """Receives the cameras, answers each head image with a chunk; prints its figures when stdin closes."""
    import array

    import rclpy
    from builtin_interfaces.msg import Duration
    from ki_msgs.msg import ActionChunk
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    from ki_robot.messages.arrays import time_ns

    rclpy.init()
    node = rclpy.create_node('policy')
    publisher = node.create_publisher(ActionChunk, 'action_chunk', 10)
    latencies: list[float] = []
    names = [f'joint{number}/position' for number in range(COLUMNS)]
    chunk = ActionChunk(horizon=HORIZON, interface_names=names, step_dt=Duration(nanosec=20_000_000))
    chunk.data = array.array('d', bytes(8 * HORIZON * COLUMNS))
    cpu: list[float] = []

    def arrived(message: Any, answer: bool) -> None:
        latencies.append((time.time_ns() - time_ns(message.header.stamp)) / 1e9)
        cpu[:] = [cpu[0] if cpu else time.process_time(), time.process_time()]
        if answer:
            chunk.chunk_id += 1
            chunk.observation_stamp = message.header.stamp
            publisher.publish(chunk)

    for name in CAMERAS:
        node.create_subscription(
            Image,
            f'{name}_camera/image_raw',
            lambda message, answer=name == CAMERAS[0]: arrived(message, answer),
            qos_profile_sensor_data,
        )

    def report_at_end() -> None:
        sys.stdin.read()
        used = cpu[1] - cpu[0] if cpu else 0.0
        print(json.dumps({'received': len(latencies), 'cpu_s': round(used, 3), 'image': percentiles(latencies)}))
        sys.stdout.flush()
        os._exit(0)

    threading.Thread(target=report_at_end, daemon=True).start()
    executor = executor_of(executor_name)
    executor.add_node(node)
    while True:  # and not spin(): that of EventsExecutor keeps the interpreter to itself, and no other thread runs
        executor.spin_once(timeout_sec=0.1)


def pair(size: tuple[int, int], seconds: float, profile: str = '', executor: str = 'single', way: str = 'array') -> Any:
    """Runs the two processes and joins their figures. `profile` is a file; '' leaves Fast DDS to its defaults."""
    environment = os.environ | {
        'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
        'ROS_DOMAIN_ID': str(os.getpid() % 90 + 1),
    }
    for name in ('FASTRTPS_DEFAULT_PROFILES_FILE', 'FASTDDS_DEFAULT_PROFILES_FILE'):
        environment.pop(name, None)
        if profile:
            environment[name] = profile
    me = [sys.executable, __file__]
    pipes: dict[str, Any] = {'env': environment, 'text': True, 'stdout': subprocess.PIPE}
    policy = subprocess.Popen([*me, '--policy', executor], stdin=subprocess.PIPE, **pipes)
    options = ['--cameras', str(size[0]), str(size[1]), way, '--seconds', str(seconds)]
    cameras = subprocess.Popen([*me, *options], **pipes)
    try:
        sent = json.loads(cameras.communicate(timeout=seconds * 6 + 60)[0])
        got = json.loads(policy.communicate('', timeout=30)[0])
    finally:
        for process in (cameras, policy):
            process.kill()
    return {
        'dropped': sent['sent'] - got['received'],
        'dropped_share': round(1 - got['received'] / sent['sent'], 4),
        'image': got['image'],
        'chunk_back': sent['chunk_back'],
        'cpu_share': {'cameras': sent['cpu'], 'policy': round(got['cpu_s'] / seconds, 3)},
        **{name: sent[name] for name in ('sent', 'fps', 'late_frames')},
    }


def median_ms(work: Callable[[], Any], repeats: int = 30) -> float:
    """Median time of a call in milliseconds, after three for warm-up."""
    times = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times[3:])


def writing() -> dict[str, dict[str, float | None]]:
    """Time to write a picture into a message, and the ratio to ours, by size; None for what the field refuses."""
    from sensor_msgs.msg import Image

    results = {}
    for size in SIZES:
        image = np.zeros((size[1], size[0], 3), np.uint8)
        figures: dict[str, float | None] = {}
        for name, fill in writers().items():
            try:
                took = median_ms(lambda fill=fill, image=image: fill(Image(), image, 1), 10)
            except AssertionError:
                took = None
            figures[f'{name}_ms'] = took and round(took, 4)
            if name != 'array' and took:
                figures[f'{name}_ratio'] = round(took / (figures['array_ms'] or 1.0), 1)
        results[f'{size[0]}x{size[1]}'] = figures
    return results


def reading() -> dict[str, dict[str, float]]:
    """Time from message to RGB array against one memcpy of the same picture, by size and encoding."""
    from sensor_msgs.msg import Image

    from ki_robot.messages.arrays import fill_image
    from ki_robot.messages.images import decode_image

    results = {}
    for width, height in SIZES:
        image = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        target = np.empty_like(image)
        copy = median_ms(lambda image=image, target=target: np.copyto(target, image), 200)
        for encoding in ('rgb8', 'bgr8'):
            message = fill_image(Image(), image, 1, encoding=encoding)
            took = median_ms(lambda message=message: decode_image(message), 200)
            results[f'{width}x{height} {encoding}'] = {
                'decode_ms': round(took, 4),
                'memcpy_ms': round(copy, 4),
                'ratio': round(took / copy, 3),
            }
    return results


def run_all(seconds: float) -> dict[str, Any]:
    """All cases, one after the other."""
    shared = str(ROOT / 'config' / 'dds' / 'loopback.xml')
    results: dict[str, Any] = {'transports': {}, 'executors': {}, 'ways_to_write': {}}
    with tempfile.TemporaryDirectory() as folder:
        udp = Path(folder) / 'udp.xml'
        udp.write_text(UDP_ONLY, encoding='utf-8')
        for size in SIZES:
            for name, profile in (('shared memory 32 MiB', shared), ('udp only', str(udp)), ('fast dds default', '')):
                case = f'{size[0]}x{size[1]} {name}'
                results['transports'][case] = note(case, pair(size, seconds, profile))
    for executor in ('single', 'multi', 'events'):
        results['executors'][executor] = note(f'executor {executor}', pair(SIZES[0], seconds, shared, executor))
    for way in writers():
        results['ways_to_write'][way] = note(f'written as {way}', pair(SIZES[0], seconds, shared, way=way))
    for checks in ('0', '1'):  # Humble checks every element of a sequence; from Jazzy on it is a choice
        environment = os.environ | {'ROS_PYTHON_CHECK_FIELDS': checks}
        done = subprocess.run(
            [sys.executable, __file__, '--writing'], env=environment, stdout=subprocess.PIPE, check=True
        )
        results[f'writing, field checks {"on" if checks == "1" else "off"}'] = note('writing', json.loads(done.stdout))
    results['reading'] = note('reading', reading())
    return results


def note(name: str, figures: Any) -> Any:
    """Prints a case as it comes."""
    print(f'{name}: {json.dumps(figures)}', flush=True)
    return figures


def main() -> None:
    """The whole, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--seconds', type=float, default=8.0)
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'middleware.json')
    parser.add_argument('--cameras', nargs=3, help=argparse.SUPPRESS)
    parser.add_argument('--policy', help=argparse.SUPPRESS)
    parser.add_argument('--writing', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cameras:
        camera_process(int(options.cameras[0]), int(options.cameras[1]), options.seconds, options.cameras[2])
    elif options.policy:
        policy_process(options.policy)
    elif options.writing:
        print(json.dumps(writing()))
    else:
        before = os.getloadavg()[0]
        results = run_all(options.seconds)
        machine = {'cpu': platform.processor() or platform.machine(), 'cores': os.cpu_count(), 'load_before': before}
        about = {'command': 'python benchmarks/middleware.py', 'seconds_per_case': options.seconds, 'machine': machine}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({**about, **results}, indent=1) + '\n', encoding='utf-8')
        print(f'written to {options.out}')


if __name__ == '__main__':
    main()
