"""What every test shares: one torch thread, a ROS domain of its own, loopback only, fixed examples, and loud skips."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import hypothesis
import pytest

from ki.simulation.simulated_data import load_triton_before_mesa

ROOT = Path(__file__).resolve().parent.parent
# What the tests on real data know by heart; other recordings will not do.
RECORDINGS = ('unitree_g1_lerobot_v21', 'rosbag2_upstream_testbags', 'mcap_own_types')

# Set before any test imports a library that reads them. Two cores serve the whole run, and BLAS
# threads that wait for each other cost more than they bring at these sizes.
os.environ.setdefault('OMP_NUM_THREADS', '1')
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
os.environ.setdefault('FASTRTPS_DEFAULT_PROFILES_FILE', str(ROOT / 'config' / 'dds' / 'loopback.xml'))
os.environ.setdefault('HF_HUB_OFFLINE', '1')

# One process renders in one test and steps an optimiser in another; see there for what happens otherwise.
load_triton_before_mesa()

# The same examples on every run and every machine: a red test is about the change at hand. A search for new ones is
# HYPOTHESIS_PROFILE=search; what it finds becomes an @example.
hypothesis.settings.register_profile('fixed', derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile('search', deadline=None, print_blob=True)
hypothesis.settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'fixed'))

# A shell without a terminal starts what runs in its background with Ctrl-C ignored, and all that is started there, too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# With several workers (`make test`) a file goes whole to one of them.
# Live: these start robots, nodes and simulators that keep time, and wait more than they compute. Two workers run them,
# the longest first, and the others give way to these two. Exports: these share one set of ONNX graphs, which takes long
# to make, so they go together.
LIVE = (
    'tests/ki_policy_node/replay/test_live_parity.py',
    'tests/ki_sim/node/test_sim_node.py',
    'tests/ki/commands/test_up.py',
    'tests/ki_policy_node/policy/test_policy_node.py',
    'tests/ki_policy_node/executor/test_executor_node.py',
    'tests/ki_policy_node/recorder/test_recorder_node.py',
    'tests/ki/commands/test_bag.py',
    'tests/ki/commands/test_demo.py',
    'tests/ki/commands/test_topic.py',
    'tests/ki/doctor/test_doctor_data.py',
    'tests/ki/stack/test_policy_stack.py',
    'tests/ki_policy_node/console/test_console_page.py',
    'tests/ki_sim/node/test_realtime.py',
    'tests/faults/',
    'tests/ros/',
)
EXPORTS = ('tests/ki_vla/engine/', 'tests/ki_vla/export/')
LIVE_WORKERS = ('gw0', 'gw1')
if os.environ.get('PYTEST_XDIST_WORKER', LIVE_WORKERS[0]) not in LIVE_WORKERS:
    os.nice(5)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What collecting imports stays: the garbage collector does not search it, neither meanwhile nor in every test."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores, from 3 to 8: live tests wait half of their time, and each worker takes a gigabyte."""
    return min(max(len(os.sched_getaffinity(0)) + 1, 3), 8)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distributes files over workers, the live ones over two."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition('::')[0]
            return 'exports' if file.startswith(EXPORTS) else file

        def _assign_work_unit(self, node: Any) -> None:
            """Takes the next off the queue: a live file first on a live worker, and last on another."""
            live = node.gateway.id in LIVE_WORKERS
            self.workqueue.move_to_end(min(self.workqueue, key=lambda scope: rank(scope, live)), last=False)
            super()._assign_work_unit(node)

    def rank(scope: str, live: bool) -> int:
        if scope == 'exports':
            return 50
        place = next((number for number, prefix in enumerate(LIVE) if scope.startswith(prefix)), None)
        if place is None:
            return 100
        return place if live else 200 + place

    return ByFile(config, log)


@pytest.fixture(scope='session')
def root() -> Path:
    """The folder of the project."""
    return ROOT


@pytest.fixture(scope='session')
def ki_data() -> Path:
    """The folder of recordings that `KI_DATA` names; without it the test is skipped, and says so."""
    folder = os.environ.get('KI_DATA')
    if not folder or not Path(folder).is_dir():
        pytest.skip('KI_DATA names no folder of recordings: nothing was checked on real data')
    missing = [name for name in RECORDINGS if not Path(folder, name).is_dir()]
    if missing:
        pytest.skip(f'KI_DATA ({folder}) has no {", ".join(missing)}: nothing was checked on real data')
    return Path(folder)


@pytest.fixture
def without_plotly() -> Callable[[str], str]:
    """A report without the plotting library, which must be in it once: what the project itself wrote."""

    def strip(page: str) -> str:
        from ki_policy_node.reports.charts import plotly_script

        assert page.count(plotly_script()) == 1
        return page.replace(plotly_script(), '')

    return strip


# ROS domain ids, from one that differs between processes on. Up to 101: above, the ports of a domain lie among those
# that Linux gives to any program.
_domains = (1 + number % 101 for number in itertools.count(17 * os.getpid()))


@contextlib.contextmanager
def claimed_domain() -> Iterator[int]:
    """A domain id that no other test and nothing else on this machine uses, for the length of a `with` block.

    Domain d owns the UDP ports from 7400 + 250 d on. Fast DDS takes number 10 for its first participant and leaves
    number 9 alone: whoever holds that one has claimed the domain, and the system frees it when the process ends.
    """
    for domain in itertools.islice(_domains, 101):
        ports = 7400 + 250 * domain
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as claim:
            try:
                claim.bind(('127.0.0.1', ports + 9))
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as participant:
                    participant.bind(('127.0.0.1', ports + 10))
            except OSError:
                continue
            yield domain
            return
    pytest.fail('every ROS domain from 1 to 101 is in use on this machine')


@pytest.fixture(autouse=True)
def ros_domain(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int | None]:
    """A domain id of its own for every test marked `ros`."""
    if request.node.get_closest_marker('ros') is None:
        yield None
        return
    if importlib.util.find_spec('rclpy') is None:
        pytest.skip('rclpy is not installed: `make setup` installs it. NOTHING of ROS 2 was checked here')
    with claimed_domain() as domain:
        monkeypatch.setenv('ROS_DOMAIN_ID', str(domain))
        yield domain


@pytest.fixture(scope='module')
def shared_domain() -> Iterator[int]:
    """A domain id for what the tests of a file share while each has its own besides."""
    with claimed_domain() as domain:
        yield domain


@pytest.fixture(scope='session')
def rigs() -> ModuleType:
    """The module tests/rig.py: the stack on a robot made of topics."""
    spec = importlib.util.spec_from_file_location('rig', ROOT / 'tests' / 'rig.py')
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def rig(ros_domain: int, rigs: ModuleType, tmp_path: Path) -> Iterator[Any]:
    """A robot and an observer; the test starts the processes it needs."""
    with rigs.make(tmp_path) as made:
        yield made
