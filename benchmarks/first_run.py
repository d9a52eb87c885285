"""What a newcomer meets: `ki demo`, again and again, on an idle machine and beside one that is busy.

    python benchmarks/first_run.py [--runs 10] [--conditions idle loaded] [--out benchmarks/results/first_run.json]

Each run is a process of its own, as a person starts it. `loaded` runs beside `stress-ng --cpu 4 --vm 1` (Debian package
stress-ng). Every run is written when it is over; the same call goes on with those that are missing. Nothing else may
run on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ki_common.errors import KiError
from ki_common.files import write_text
from ki_sim.evaluate.closed_loop import rate

ROOT = Path(__file__).resolve().parent.parent
STRESS = ('stress-ng', '--cpu', '4', '--vm', '1')
CONDITIONS = ('idle', 'loaded')
LIMIT_S = 1800.0  # of one run


@contextlib.contextmanager
def beside(condition: str) -> Iterator[None]:
    """What else runs meanwhile.

    Raises:
        KiError: stress-ng is not installed.
    """
    if condition == 'idle':
        yield
        return
    if shutil.which(STRESS[0]) is None:
        raise KiError('stress-ng is not installed: apt-get install stress-ng, or give --conditions idle.')
    other = subprocess.Popen(STRESS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        os.killpg(other.pid, signal.SIGTERM)
        other.wait(30.0)


def first_run(arguments: Sequence[str]) -> dict[str, Any]:
    """One demonstration, and what its report says."""
    with tempfile.TemporaryDirectory(prefix='first_run_') as folder:
        out = Path(folder) / 'demo'
        command = [sys.executable, '-m', 'ki.main', 'demo', '--no-real', '--out', str(out), *arguments]
        begin, load = time.monotonic(), os.getloadavg()[0]
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
            status, words = done.returncode, done.stderr.strip()
        except subprocess.TimeoutExpired:
            status, words = -1, f'not over after {LIMIT_S:g} s'
        made = {'status': status, 'seconds': round(time.monotonic() - begin, 1), 'load_before': round(load, 2)}
        found = out / 'demo.json'
        numbers = json.loads(found.read_text(encoding='utf-8')) if found.is_file() else {}
        return made | {'error': words if status else ''} | said(numbers, (out / 'report.html').is_file())


def said(numbers: dict[str, Any], report: bool) -> dict[str, Any]:
    """The figures of one run, from the numbers of its report."""
    outcomes, episodes = numbers.get('outcomes', []), numbers.get('episodes', [])
    late = [each['executor_lateness_p99_ms'] for each in episodes if each['executor_lateness_p99_ms'] is not None]
    ages = [each['chunk_age_ms']['p50'] for each in episodes if each['chunk_age_ms']]
    return {
        'report': report,
        'success': sum(bool(each['success']) for each in outcomes),
        'episodes': len(outcomes),
        'stepped': sum(each['speed'] != 1.0 for each in outcomes),
        'lateness_p99_ms': max(late, default=None),
        'chunk_age_p50_ms': round(statistics.median(ages), 1) if ages else None,
        'errors': sorted({each['error'] for each in outcomes if each['error']}),
    }


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """All runs of one condition."""
    late = [each['lateness_p99_ms'] for each in runs if each['lateness_p99_ms'] is not None]
    return {
        'runs': len(runs),
        'with_report': sum(each['report'] and each['status'] == 0 for each in runs),
        'success': rate(sum(each['success'] for each in runs), sum(each['episodes'] for each in runs)),
        'stepped': sum(each['stepped'] for each in runs),
        'lateness_p99_ms': {'median': statistics.median(late), 'max': max(late)} if late else {},
        'seconds': statistics.median(each['seconds'] for each in runs),
    }


def main(arguments: list[str] | None = None) -> int:
    """Run what is missing, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--runs', type=int, default=10, help='of each condition')
    parser.add_argument('--conditions', nargs='+', choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument('--out', type=Path, default=ROOT / 'benchmarks' / 'results' / 'first_run.json')
    parser.add_argument('--demo', nargs=argparse.REMAINDER, default=[], help='what follows is given to `ki demo`')
    given = parser.parse_args(arguments)
    result: dict[str, Any] = {'runs': {}}
    if given.out.is_file():
        result = json.loads(given.out.read_text(encoding='utf-8'))
        if result['demo'] != given.demo:
            raise KiError(f'{given.out} holds runs with --demo {" ".join(result["demo"])}; give another --out.')
    machine = {'cores': os.cpu_count(), 'platform': platform.platform(), 'python': platform.python_version()}
    result |= {'machine': machine, 'stress': ' '.join(STRESS), 'demo': given.demo}
    for condition in given.conditions:
        runs = result['runs'].setdefault(condition, [])
        while len(runs) < given.runs:
            with beside(condition):
                runs.append(first_run(given.demo))
            result['summary'] = {name: summary(each) for name, each in result['runs'].items() if each}
            write_text(given.out, json.dumps(result, indent=1) + '\n')
            print(f'{condition} {len(runs)} of {given.runs}: {json.dumps(runs[-1])}', flush=True)
    print(json.dumps(result.get('summary', {}), indent=1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
