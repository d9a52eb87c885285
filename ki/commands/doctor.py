"""Check this machine, and check data: what is there, what is missing, and the command that fixes it."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ki_common.share import share_file

app = typer.Typer(help='Check this machine: Python, torch, CUDA, ONNX Runtime, ROS 2, rendering; or check data.')
SEGMENT_BYTES = 4 * 1920 * 1080 * 3  # shared memory that holds a few full-HD images
ROUND_TRIPS, LEAST_ANSWERED = 3, 0.9
COLOURS = {'ok': 'green', 'note': 'yellow', 'broken': 'red'}


@dataclass(frozen=True)
class CheckResult:
    """One line: what was looked at, ok | note (works without) | broken, what was found, what to type."""

    what: str
    state: str
    found: str
    fix: str = ''


@app.callback(invoke_without_command=True)
def doctor(
    context: typer.Context,
    quick: bool = typer.Option(False, help='Leave out what takes seconds: the round trip and rendering.'),
    as_json: bool = typer.Option(False, '--json', help='Print JSON.'),
) -> None:
    """Looks at everything the project uses; exit status 1 when something is broken."""
    if context.invoked_subcommand:
        return
    checks = [python, torch, onnxruntime, tensorrt, dds, ros, ki_msgs, tools, data]
    checks += [] if quick else [security, round_trip, rendering]
    findings = []
    for check in checks:
        for finding in examine(check):
            findings.append(finding)
            if not as_json:
                show(finding)
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    broken = [finding.what for finding in findings if finding.state == 'broken']
    if not as_json:
        print(f'\n{len(broken)} broken: {", ".join(broken)}' if broken else '\nAll that is needed is there.')
    raise typer.Exit(code=1 if broken else 0)


@app.command('data')
def data_command(
    data: Annotated[Path | None, typer.Argument(help='Recordings or their index: what is trained on.')] = None,
    bundle: Annotated[Path | None, typer.Option(help='A run or a bundle, whose statistics are compared with.')] = None,
    against: Annotated[Path | None, typer.Option(help='Recordings from where the policy will run.')] = None,
    live: Annotated[bool, typer.Option('--live', help='Listen to the robot that the policy will run on.')] = False,
    seconds: Annotated[float, typer.Option(help='How long to listen.')] = 5.0,
    wait: Annotated[float, typer.Option(help='Seconds to wait for the robot.')] = 5.0,
    namespace: Annotated[str, typer.Option(help="Of the robot's topics.")] = '',
    sim_time: Annotated[bool, typer.Option('--sim-time', help='Take the time from /clock.')] = False,
    robot: Annotated[
        str, typer.Option(help='Contract of arrays of the simulator, without a bundle.')
    ] = 'bimanual_mobile',
    as_json: Annotated[bool, typer.Option('--json', help='Print JSON.')] = False,
    html: Annotated[Path | None, typer.Option(help='Write a report with a picture of each finding.')] = None,
    sarif: Annotated[Path | None, typer.Option(help='Write SARIF 2.1.0, for CI.')] = None,
    trim: Annotated[Path | None, typer.Option(help='Write a list of what to train on (data.trim of a run).')] = None,
) -> None:
    """Would a model learn wrong things from DATA, and will the robot show it what it has learned from?

    Do the actions move the robot, do the pictures show it when it moves; units, spans, grippers, jumps, shaking, idle
    parts, gaps and rates, dark or frozen cameras, copies, contradictions, missing language. With
    --against or --live, states and rates where the policy will run are compared with DATA, or with the statistics of
    --bundle; with --bundle alone, DATA is. Exit status 1 when something is seriously wrong.
    """
    from ki.doctor.doctor_data import LiveSource, report, show, write_files

    made = report(data, bundle, against, LiveSource(seconds, wait, namespace, sim_time) if live else None, robot)
    print(json.dumps(made.to_dict(), indent=1)) if as_json else show(made)
    write_files(made, html, sarif, trim)
    raise typer.Exit(code=1 if made.is_serious else 0)


def examine(check: Callable[[], Iterator[CheckResult]]) -> Iterator[CheckResult]:
    """Runs one check; what it cannot look at is a finding and not a traceback."""
    try:
        yield from check()
    except Exception as error:
        yield CheckResult(check.__name__.replace('_', ' '), 'broken', f'{type(error).__name__}: {error}')


def show(finding: CheckResult) -> None:
    """Prints one finding."""
    typer.secho(f'{finding.state:>6}  ', fg=COLOURS[finding.state], nl=False)
    print(f'{finding.what:<14} {finding.found}')
    if finding.fix:
        print(f'{"":>23}-> {finding.fix}')


def optional(name: str, fix: str) -> Any:
    """The module, or a CheckResult when it is not there or does not import."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        return CheckResult(name, 'note', f'not here ({error})', fix)


def python() -> Iterator[CheckResult]:
    """Interpreter and environment."""
    fits = (3, 10) <= sys.version_info[:2] < (3, 13)
    fix = '' if fits else 'make setup PYTHON=python3.12'
    yield CheckResult('Python', 'ok' if fits else 'broken', f'{platform.python_version()} at {sys.prefix}', fix)


def torch() -> Iterator[CheckResult]:
    """PyTorch and the device it computes on."""
    module = optional('torch', 'make setup')
    if isinstance(module, CheckResult):
        yield CheckResult('torch', 'broken', module.found, 'make setup')
        return
    yield CheckResult('torch', 'ok', module.__version__)
    if module.cuda.is_available():
        name, memory = module.cuda.get_device_name(0), module.cuda.get_device_properties(0).total_memory / 2**30
        yield CheckResult('CUDA', 'ok', f'{module.cuda.device_count()} device(s), {name}, {memory:.0f} GiB')
    elif shutil.which('nvidia-smi'):
        build = f'torch is built for CUDA {module.version.cuda}' if module.version.cuda else 'torch is a CPU build'
        yield CheckResult('CUDA', 'broken', f'there is a GPU, but {build}', 'pip install --force-reinstall torch')
    else:
        yield CheckResult('CUDA', 'note', 'no GPU: inference and training run on the CPU')


def onnxruntime() -> Iterator[CheckResult]:
    """ONNX Runtime, and whether exactly one build of it is installed."""
    builds = [name for name in ('onnxruntime', 'onnxruntime-gpu') if version_of(name)]
    if len(builds) > 1:
        fix = 'pip uninstall -y onnxruntime onnxruntime-gpu && make setup ACCELERATOR=gpu'
        yield CheckResult('ONNX Runtime', 'broken', 'two builds share one module: ' + ' and '.join(builds), fix)
        return
    module = optional('onnxruntime', 'make setup')
    if isinstance(module, CheckResult):
        yield CheckResult('ONNX Runtime', 'note', module.found, module.fix)
        return
    providers = [
        name.removesuffix('ExecutionProvider') for name in module.get_available_providers() if 'Azure' not in name
    ]
    fix = 'make setup ACCELERATOR=gpu' if shutil.which('nvidia-smi') and 'CUDA' not in providers else ''
    yield CheckResult('ONNX Runtime', 'note' if fix else 'ok', f'{module.__version__} with {", ".join(providers)}', fix)


def tensorrt() -> Iterator[CheckResult]:
    """TensorRT; a matter of machines with a GPU only."""
    if shutil.which('nvidia-smi'):
        module = optional('tensorrt', 'make setup ACCELERATOR=gpu')
        yield module if isinstance(module, CheckResult) else CheckResult('tensorrt', 'ok', module.__version__)


def version_of(distribution: str) -> str:
    """Installed version of a distribution, or ''."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ''


def ros() -> Iterator[CheckResult]:
    """Which ROS 2, where from, and how it is set."""
    module = optional('rclpy', 'make setup')
    if isinstance(module, CheckResult):
        yield CheckResult('ROS 2', 'broken', module.found, 'source a ROS 2, or: make setup')
        return
    folder, here = Path(module.__file__).resolve(), Path(sys.prefix).resolve()
    wheels = version_of('ros-jazzy-rclpy')
    wheels_here = wheels and Path(str(importlib.metadata.distribution('ros-jazzy-rclpy').locate_file(''))).resolve()
    if wheels and folder.is_relative_to(here):
        yield CheckResult('ROS 2', 'ok', f'jazzy, rclpy {wheels} from PyPI wheels')
    elif wheels_here and wheels_here.is_relative_to(here):
        fix = f'use a shell without it, or: {sys.executable} -m pip uninstall ros-jazzy-rclpy'
        yield CheckResult('ROS 2', 'broken', f'rclpy comes from {folder.parent}, and there are wheels too', fix)
    else:
        yield CheckResult('ROS 2', 'ok', f'{os.environ.get("ROS_DISTRO", "unknown distribution")} at {folder.parent}')
    domain, reach = os.environ.get('ROS_DOMAIN_ID', '0'), os.environ.get('ROS_AUTOMATIC_DISCOVERY_RANGE', 'not set')
    rmw = importlib.import_module('rclpy.utilities').get_rmw_implementation_identifier()
    yield CheckResult('', 'ok', f'{rmw}, domain {domain}, discovery range {reach}')


def security() -> Iterator[CheckResult]:
    """Whether the DDS in use can enforce SROS2, which a node in a process of its own shows."""
    asked = os.environ.get('KI_SECURITY') == 'enforce' or os.environ.get('ROS_SECURITY_ENABLE') == 'true'
    probe = (
        "import rclpy; rclpy.init(args=['--ros-args', '--enclave', '/ki_probe', '--log-level', 'fatal']); "
        "rclpy.create_node('ki_probe')"
    )
    grants = importlib.import_module('ki_policy_node.security.grants').Grants('ki_probe')
    with tempfile.TemporaryDirectory() as folder:
        keystore = importlib.import_module('ki_policy_node.security.keystore')
        keystore.create(Path(folder), {'ki_probe': grants}, '', int(os.environ.get('ROS_DOMAIN_ID', '0')))
        on = {'ROS_SECURITY_ENABLE': 'true', 'ROS_SECURITY_STRATEGY': 'Enforce', 'ROS_SECURITY_KEYSTORE': folder}
        done = subprocess.run(
            [sys.executable, '-c', probe], env=os.environ | on, capture_output=True, text=True, check=False
        )
    if not done.returncode:
        yield CheckResult('Security', 'ok', 'this DDS can enforce SROS2; keys: ki security init')
    else:
        fix = 'use a ROS 2 from apt, or unset KI_SECURITY and ROS_SECURITY_ENABLE' if asked else ''
        yield CheckResult('Security', 'broken' if asked else 'note', 'this DDS cannot enforce SROS2', fix)


def ki_msgs() -> Iterator[CheckResult]:
    """Our interfaces: built, and of this tree."""
    try:
        message = importlib.import_module('ki_msgs.msg').ActionChunk
        importlib.import_module('rclpy.serialization').serialize_message(message())
    except (ImportError, AttributeError) as error:
        yield CheckResult('ki_msgs', 'broken', f'not built ({error})', 'make setup')
        return
    yield CheckResult('ki_msgs', 'ok', version_of('ki_msgs') or 'from the sourced workspace')


def dds() -> Iterator[CheckResult]:
    """Whether camera images fit the shared memory of Fast DDS."""
    node_ros = importlib.import_module('ki_policy_node.common.ros')
    rmw = os.environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp')
    if 'fastrtps' not in rmw:
        yield CheckResult('DDS profile', 'note', f'{rmw} does not read the profiles of config/dds')
        return
    chosen = node_ros.use_dds_profile()
    path = os.environ.get('FASTRTPS_DEFAULT_PROFILES_FILE', '')
    if chosen == 'none':
        yield CheckResult('DDS profile', 'note', 'none: images travel as UDP fragments and get lost', 'unset KI_DDS')
        return
    try:
        sizes = [int(node.text or 0) for node in ElementTree.parse(path).iter() if node.tag.endswith('segment_size')]
    except (OSError, ElementTree.ParseError) as error:
        yield CheckResult('DDS profile', 'broken', f'{path}: {error}', 'unset FASTRTPS_DEFAULT_PROFILES_FILE')
        return
    size = max(sizes, default=512 * 1024)
    fix = (
        ''
        if size >= SEGMENT_BYTES
        else f'export FASTRTPS_DEFAULT_PROFILES_FILE={share_file("ki_policy_node", "config/dds/loopback.xml")}'
    )
    yield CheckResult('DDS profile', 'note' if fix else 'ok', f'{path}: shared memory {size / 2**20:g} MiB', fix)


def round_trip() -> Iterator[CheckResult]:
    """Thirty images to a second process and back; again where some are lost, since a busy machine loses some once."""
    measure = importlib.import_module('ki.stack.roundtrip').measure
    result = measure()
    for _ in range(ROUND_TRIPS - 1):
        if 0 < result.received < LEAST_ANSWERED * result.sent:
            result = measure()
    text = f'{result.received} of {result.sent} images answered'
    if result.received:
        text += f', median {1e3 * result.median_s:.1f} ms there and back, found in {result.discovery_s:.1f} s'
    if result.received >= LEAST_ANSWERED * result.sent > 0:
        yield CheckResult('round trip', 'ok', text)
    else:
        yield CheckResult(
            'round trip', 'broken', text, 'use config/dds/loopback.xml; check that 127.0.0.1 and /dev/shm work'
        )


def rendering() -> Iterator[CheckResult]:
    """MuJoCo draws one picture, with the backend the simulator would use."""
    if isinstance(optional('mujoco', ''), CheckResult):
        yield CheckResult('rendering', 'note', 'mujoco is not installed: no simulator', "pip install -e '.[sim]'")
        return
    code = (
        "import mujoco; m = mujoco.MjModel.from_xml_string(\"<mujoco><worldbody><light pos='0 0 3'/>"
        "<geom size='.1'/></worldbody></mujoco>\"); r = mujoco.Renderer(m, 48, 64); d = mujoco.MjData(m);"
        'mujoco.mj_forward(m, d); r.update_scene(d); assert r.render().any()'
    )
    backends = [os.environ['MUJOCO_GL']] if 'MUJOCO_GL' in os.environ else ['egl', 'osmesa']
    for backend in backends:
        environment = os.environ | {'MUJOCO_GL': backend, 'PYOPENGL_PLATFORM': backend}
        done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, timeout=60)
        if done.returncode == 0:
            yield CheckResult('rendering', 'ok', f'MuJoCo {version_of("mujoco")} draws with MUJOCO_GL={backend}')
            return
    fix = 'sudo apt-get install libegl1 libgl1-mesa-dri libosmesa6'
    yield CheckResult('rendering', 'broken', f'MuJoCo cannot draw with {" or ".join(backends)}', fix)


def tools() -> Iterator[CheckResult]:
    """Programs that some commands call."""
    missing = [name for name in ('cmake', 'g++', 'ffmpeg') if shutil.which(name) is None]
    fix = f'sudo apt-get install {" ".join(missing)}' if missing else ''
    yield CheckResult('programs', 'note' if missing else 'ok', 'cmake, g++, ffmpeg' + (' lack' if missing else ''), fix)


def data() -> Iterator[CheckResult]:
    """The folder of recordings."""
    folder = os.environ.get('KI_DATA', '')
    if not folder:
        yield CheckResult('recordings', 'note', 'KI_DATA is not set: parts that need real recordings are skipped')
    elif Path(folder).is_dir():
        yield CheckResult('recordings', 'ok', f'KI_DATA={folder}')
    else:
        yield CheckResult('recordings', 'broken', f'KI_DATA={folder} is no folder', 'export KI_DATA=FOLDER')
