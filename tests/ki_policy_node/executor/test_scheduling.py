"""What the executor gets of the system where it is permitted, where it is not, and when garbage is collected."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ki_policy_node.executor.scheduling import Granted, QuietCollector, raise_priority

ROOT = Path(__file__).resolve().parents[3]
PERIOD_NS = 10_000_000
PR_CAPBSET_DROP, CAP_SYS_NICE = 24, 23
CAPABLE = any(
    line.startswith('CapEff') and int(line.split()[1], 16) >> CAP_SYS_NICE & 1
    for line in Path('/proc/self/status').read_text().splitlines()
)
NO_FIFO = """
import os
def refuse(*_): raise PermissionError(1, 'Operation not permitted')
os.sched_setscheduler = refuse
"""
FIFO_TO_39 = """
import os
permitted = os.sched_setscheduler
def limited(thread, policy, parameters):
    if parameters.sched_priority > 39: raise PermissionError(1, 'Operation not permitted')
    permitted(thread, policy, parameters)
os.sched_setscheduler = limited
"""
PROGRAM = """
import json, os, threading
from ki_policy_node.executor.scheduling import lead, lower_priority, raise_priority

stop, ready, seen = threading.Event(), threading.Event(), {}
priority = lambda: (os.sched_getscheduler(0), os.sched_getparam(0).sched_priority, os.getpriority(os.PRIO_PROCESS, 0))

def ticks():
    lead(40, granted)
    seen['tick'] = priority()
    ready.set()
    stop.wait()  # or it ends while the threads are looked at

bystander = threading.Thread(target=stop.wait, daemon=True)
bystander.start()
granted = raise_priority(40)
threading.Thread(target=ticks, daemon=True).start()
ready.wait()
seen['callbacks'] = priority()
threads = [int(name) for name in os.listdir('/proc/self/task')]
seen['others'] = [(os.sched_getscheduler(t), os.getpriority(os.PRIO_PROCESS, t)) for t in threads]
lower_priority(granted)
seen['after'] = priority()
stop.set()
print(json.dumps({'policy': granted.policy, 'advice': granted.advice} | seen))
"""


def process(capable: bool, before: str = '') -> dict[str, Any]:
    """What a real process gets that has the capability to schedule itself, or has no permission at all.

    Args:
        capable: Whether it may; skips where the tests themselves may not.
        before: Code that runs first.
    """
    if capable and not CAPABLE:
        pytest.skip('needs CAP_SYS_NICE: real-time scheduling is not permitted here')

    def forbid() -> None:
        for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_NICE):
            resource.setrlimit(limit, (0, 0))
        if os.geteuid() == 0:
            ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0)

    done = subprocess.run(
        [sys.executable, '-c', f'{before}\n{PROGRAM}'],
        cwd=ROOT,
        env=os.environ | {'PYTHONPATH': str(ROOT)},
        preexec_fn=None if capable else forbid,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_with_permission_every_thread_is_real_time_and_the_tick_is_ahead_of_the_others():
    found = process(capable=True)
    assert (found['policy'], found['advice']) == ('SCHED_FIFO 40', '')
    assert found['tick'][:2] == [os.SCHED_FIFO, 40]
    assert found['callbacks'][:2] == [os.SCHED_FIFO, 39]
    assert len(found['others']) >= 2
    assert {policy for policy, _ in found['others']} == {os.SCHED_FIFO}
    assert found['after'][:2] == [os.SCHED_OTHER, 0]


def test_where_only_nice_is_permitted_it_is_taken_and_the_rest_is_explained():
    found = process(capable=True, before=NO_FIFO)
    assert found['policy'] == 'nice -10'
    assert 'SCHED_FIFO is not permitted' in found['advice']
    assert '\n' not in found['advice']
    assert {tuple(each) for each in found['others']} == {(os.SCHED_OTHER, -10)}
    assert found['tick'] == [os.SCHED_OTHER, 0, -10]


def test_without_any_permission_it_runs_as_it_is_and_one_line_says_how_to_permit_it():
    found = process(capable=False)
    assert found['policy'] == 'default'
    assert found['tick'][:2] == [os.SCHED_OTHER, 0]
    for word in ('SCHED_FIFO', 'limits.d', 'AmbientCapabilities=CAP_SYS_NICE', 'cap-add SYS_NICE', 'priority to 0'):
        assert word in found['advice']
    assert '\n' not in found['advice']


def test_a_limit_just_below_the_priority_of_the_tick_is_no_permission_and_the_tick_lives():
    found = process(capable=True, before=FIFO_TO_39)
    assert found['policy'] == 'nice -10'
    assert found['tick'] == [os.SCHED_OTHER, 0, -10]


def test_priority_0_asks_for_nothing():
    assert raise_priority(0) == Granted('default')


@pytest.fixture
def collector() -> Iterator[QuietCollector]:
    made = QuietCollector(PERIOD_NS)
    made.begin()
    yield made
    made.end()
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def after(seconds: float, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """The steady clock, so far ahead."""
    real = time.monotonic_ns
    ahead_ns = round(seconds * 1e9)
    monkeypatch.setattr(time, 'monotonic_ns', lambda: real() + ahead_ns)
    return time.monotonic_ns


def test_python_collects_nothing_by_itself_while_the_executor_ticks(collector):
    assert not gc.isenabled()
    assert gc.get_freeze_count() > 1000  # what lives already is looked at no more


def test_garbage_is_collected_once_a_second_and_only_where_the_next_tick_is_far(collector, monkeypatch):
    gone: list[int] = []
    now = after(0.5, monkeypatch)
    assert not collector.collect(now() + PERIOD_NS), 'the last one was half a second ago'
    now = after(1.5, monkeypatch)
    ring: list[Any] = [type('Tell', (), {'__del__': lambda self: gone.append(1)})()]
    ring.append(ring)
    del ring
    assert not collector.collect(now() + PERIOD_NS // 4), 'the next tick is near'
    assert not gone
    assert collector.collect(now() + PERIOD_NS)
    assert gone
    assert not collector.collect(now() + PERIOD_NS)
    now = after(12.0, monkeypatch)
    assert collector.collect(now() + PERIOD_NS // 4), 'ticks that leave no time for it do not let it pile up'


def test_a_heap_that_grows_does_not_make_collections_longer(collector, monkeypatch):
    kept = [[[]] for _ in range(200_000)]
    now = after(1.5, monkeypatch)
    assert collector.collect(now() + 10**9)
    first_ns = collector.longest_ns
    begin = time.perf_counter_ns()
    gc.collect()
    assert time.perf_counter_ns() - begin < max(first_ns, 1_000_000), 'its survivors are frozen'
    assert len(kept) == 200_000
