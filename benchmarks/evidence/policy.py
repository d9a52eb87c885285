"""A policy from nothing, timed, and played: everything that is said of the policy that ships.

    python benchmarks/evidence/policy.py config/train/demo.yaml [--seed 1] [--out out/demo] [--results FILE.json]

Makes the data, trains with a process a core, and plays what came out on scenes that it has never seen: at three
intervals of planning, every scene with two instructions, things that no action data show, and inferences that take
their time. A second call goes on where the first one stopped; the minutes of a part that was interrupted are those of
its last life, and the results say so, as they do where the data were there before. Another seed takes another --out;
it trains on the same data.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ki.simulation.sim_evaluation import together
from ki_common.files import write_text
from ki_sim.evaluate.closed_loop import EvaluationReport, SceneOutcome
from ki_vla.policy.bundle import load_bundle
from training.train.config import load_run
from training.train.run_report import CURVES, read_metrics

ROOT = Path(__file__).resolve().parents[2]
# What is asked, and the options of `ki eval sim` that ask it.
PLAYED = {
    'steps': ['--seeds', '50', '--execute-steps', '8', '--execute-steps', '25', '--execute-steps', '4'],
    'paired': ['--seeds', '20', '--paired', '--execute-steps', '8'],
    'heldout': ['--seeds', '20', '--heldout', '--execute-steps', '8'],
    'delays': ['--seeds', '20', '--execute-steps', '8', '--delay-steps', '2', '--delay-steps', '4'],
}
RATES = 'success', 'followed', 'pairs_followed'


def commands(config: Path, seed: int, out: Path, processes: int) -> dict[str, list[str]]:
    """Each part of the work, by name, as it would be typed."""
    run = [str(config), '--seed', str(seed), '--out', str(out)]
    parts = {
        'data': ['ki', 'train', *run, '--data-only'],
        'train': f'torchrun --nproc-per-node {processes} --max-restarts 3 -m ki.main train'.split() + run,
    }
    for name, options in PLAYED.items():
        folder = ['--out', str(out / 'played' / name)]
        parts[name] = ['ki', 'eval', 'sim', str(out / 'bundle'), *options, '--workers', '0', '--no-films', *folder]
    return parts


def do(name: str, command: list[str], out: Path, there: bool = False) -> None:
    """Runs a part that is not done, and writes down how long it took; `there`: it found what it makes.

    Raises:
        SystemExit: it failed or was interrupted, its own words are on the terminal; or another command did it.
    """
    done = out / 'timed' / f'{name}.json'
    if done.is_file():
        before = json.loads(done.read_text())['command']
        if before != command:
            raise SystemExit(
                f'{done} is of `{" ".join(before)}`, and not of `{" ".join(command)}`: give another --out.'
            )
        return
    done.parent.mkdir(parents=True, exist_ok=True)
    lives = done.with_suffix('.lives')
    life = (int(lives.read_text()) if lives.is_file() else 0) + 1
    write_text(lives, str(life))
    programs = {'ki': [sys.executable, '-m', 'ki.main'], 'torchrun': [sys.executable, '-m', 'torch.distributed.run']}
    environment = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    begun = time.time()
    print('+', *command, flush=True)
    try:
        failed = subprocess.run(programs[command[0]] + command[1:], cwd=ROOT, env=environment).returncode
    except KeyboardInterrupt:
        failed = 130
    if failed:
        raise SystemExit(failed)
    about = {'command': command, 'begun': begun, 'ended': time.time(), 'lives': life, 'there': there}
    write_text(done, json.dumps(about))


def minutes(out: Path, stages: list[str]) -> dict[str, float | str]:
    """How long each part of the making took; a stage ends when its curves are drawn."""
    data, train = (json.loads((out / 'timed' / f'{name}.json').read_text()) for name in ('data', 'train'))
    found: dict[str, float | str] = {'moments and questions': (data['ended'] - data['begun']) / 60}
    begin = train['begun']
    for stage in stages:
        end = (out / stage / CURVES).stat().st_mtime
        found[stage], begin = (end - begin) / 60, end
    found['bundle'] = (train['ended'] - begin) / 60
    found['sum'] = sum(float(each) for each in found.values())
    found = {name: round(float(each), 1) for name, each in found.items()}
    if data['lives'] + train['lives'] > 2:
        found['interrupted'] = 'yes: the times are those after it'
    if data['there']:
        found['data'] = 'were there before, at least in part: their making is not in these minutes'
    return found


def played(out: Path) -> dict[str, Any]:
    """Of every question and way: rates of every task and of all, the mean time of successes, the scenes that failed."""
    found: dict[str, Any] = {}
    for name in PLAYED:
        ways: dict[str, list[EvaluationReport]] = {}
        for path in sorted((out / 'played' / name).glob('*.json')):
            written = json.loads(path.read_text(encoding='utf-8'))
            outcomes = [SceneOutcome(**row) for row in written['outcomes']]
            report = EvaluationReport(written['summary']['task'], written['settings'], outcomes)
            ways.setdefault(_way(name, report.settings), []).append(report)
        for way, reports in ways.items():
            found[way] = {report.task: _task(report) for report in reports}
            all_of_them = together(reports)
            found[way] |= {f'{rate} of all': [all_of_them[rate]['k'], all_of_them[rate]['n']] for rate in RATES}
    return found


def _way(name: str, settings: dict[str, Any]) -> str:
    way = f'every {settings["execute_steps"]} steps'
    if name == 'delays':
        way += f', an inference takes {settings["delay_steps"]} steps'
    asked = {'paired': ', two instructions a scene', 'heldout': ', pairs of colour and kind that no action data show'}
    return way + asked.get(name, '')


def _task(report: EvaluationReport) -> dict[str, Any]:
    summary = report.summary()
    return {
        **{rate: [summary[rate]['k'], summary[rate]['n']] for rate in RATES},
        'time_s': None if summary['time_s'] is None else round(summary['time_s'], 2),
        'failed_seeds': [[each.seed, each.goal_seed] for each in report.outcomes if not each.success],
    }


def learned(folder: Path) -> dict[str, Any]:
    """Held-out losses of a stage, and the samples that it took a second."""
    lines = read_metrics(folder)
    held = [{k: round(v, 4) for k, v in line.items() if k != 'kind' and v} for line in lines if line['kind'] != 'train']
    speed = [round(line['samples_per_s']) for line in lines if line['kind'] == 'train' and 'samples_per_s' in line]
    return {'held out': held, 'samples_per_s': speed}


def main(arguments: list[str] | None = None) -> int:
    """Makes, plays, and writes."""
    parser = argparse.ArgumentParser(description='A policy from nothing, timed, and played.')
    parser.add_argument('config', type=Path)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--out', type=Path, default=Path('out/demo'))
    parser.add_argument('--results', type=Path, help='Else OUT/results.json.')
    parser.add_argument('--note', default='', help='What else the machine did meanwhile.')
    given = parser.parse_args(arguments)
    cores = len(os.sched_getaffinity(0))
    parts = commands(given.config, given.seed, given.out, cores)
    run = load_run(given.config)
    there = run.simulate is not None and (ROOT / run.simulate.out).exists()
    for name, command in parts.items():
        do(name, command, given.out, there and name == 'data')
    stages = [stage.name for stage in run.stages]
    results: dict[str, Any] = {
        'what': f'A policy from nothing by {given.config}, seed {given.seed}, and played on scenes it has never seen',
        'commands': ['OMP_NUM_THREADS=1 ' + ' '.join(command) for command in parts.values()],
        'machine': {'cores': cores, 'note': given.note},
        'minutes': minutes(given.out, stages),
        'policy': load_bundle(given.out / 'bundle').policy_id,
        'played': played(given.out),
        'training': {stage: learned(given.out / stage) for stage in stages},
    }
    target = given.results or given.out / 'results.json'
    write_text(target, json.dumps(results, indent=1) + '\n')
    for way, found in results['played'].items():
        print(f'{way}: ' + ', '.join(f'{rate} {found[f"{rate} of all"]}' for rate in RATES))
    print(target, results['minutes'])
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
