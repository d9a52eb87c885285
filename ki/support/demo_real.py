"""The second part of the demonstration: recordings of a real robot, from a LeRobot dataset to the report of a replay.

Four episodes are trained on, the fifth is replayed through the node's code. OUT/real holds all of it, and what is done
is not done again:

train/ held/      recordings (rosbag2, MCAP) of four episodes, and of the fifth
run/              the training run, with its bundle
report.html report.json       the replay, with the mean of what the policy would do
sampled.html sampled.json     the same, sampled as the node does
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ki.support.progress import progress
from ki_common.errors import KiError
from ki_common.share import share_file

if TYPE_CHECKING:
    from training.lerobot.read import LerobotDataset
    from training.train.config import Run

ROBOT, CONFIG = 'g1_upper_body', 'g1.yaml'
VARIABLE, PLACE = 'KI_DATA', 'real'
EPISODES = 5  # the last one is held out
ABOUT = 'about.json'
# One denoising step gives the mean of what the policy would do, which a mean error is fair to; many, one of the things
# that it would do.
REPLAYS = {'report': 1, 'sampled': 10}
CYCLE_STEPS = 10  # of the replay: a third of a second between observations
YOUR_OWN = (
    f'Point {VARIABLE} at a folder that holds a LeRobot dataset (v2.1 or v3) with the columns of '
    f'config/robots/{ROBOT}.yaml and call the same again: {VARIABLE}=FOLDER ki demo --only-real. For a dataset of any '
    'other robot: `ki data from-lerobot DATASET --out out/mine/bags`, '
    '`ki train --bags out/mine/bags --robot out/mine/bags/contract.yaml --out out/mine/run`, '
    '`ki replay out/mine/bags/episode_000000 --bundle out/mine/run/bundle`.'
)


@dataclass(frozen=True)
class Second:
    """How the second part ended: what is to be told, and the report where there is one.

    Attributes:
        sentences: for people.
        report: the HTML file; None: skipped, stopped or failed.
        result: of `ki_policy_node.replay.replay_report.summary`.
        stopped: training was asked to stop; the same call goes on.
        failed: there was something to work on, and it went wrong.
    """

    sentences: tuple[str, ...]
    report: Path | None = None
    result: dict[str, Any] | None = None
    stopped: bool = False
    failed: bool = False


def show(out: Path, console: Any, folder: str | None = None, steps: int | None = None) -> Second:
    """Does the second part, or says loudly why not; tells the report of the first part, where there is one.

    Args:
        out: Folder of the demonstration.
        console: Of rich.
        folder: Where datasets are; what `KI_DATA` names unless given.
        steps: Of training, instead of those of the configuration.
    """
    console.rule('Second part: recordings of a real robot')
    try:
        dataset = find(os.environ.get(VARIABLE, '') if folder is None else folder)
    except KiError as error:
        second = Second((f'Skipped: {error}', YOUR_OWN))
    else:
        try:
            second = _work(dataset, out / 'real', console, steps)
        except KiError as error:
            second = Second((f'Failed: {error}',), failed=True)
    _tell(second, out, console)
    return second


def find(folder: str) -> LerobotDataset:
    """The first dataset below a folder that fits the robot and has enough episodes on disk.

    Raises:
        KiError: None does; the sentence says what is there.
    """
    from ki_robot.contract.contract import load_contract
    from training.lerobot.read import LerobotDataset, dataset_folders
    from training.lerobot.to_bags import misfit

    if not folder:
        raise KiError(f'{VARIABLE} is not set, so there are no recordings of a real robot.')
    if not Path(folder).is_dir():
        raise KiError(f'{VARIABLE} is {folder}, which is no folder.')
    contract = load_contract(ROBOT)
    refused: list[str] = []
    for path in dataset_folders(Path(folder)):
        try:
            dataset = LerobotDataset(path)
            why = misfit(dataset, contract)
        except KiError as error:
            refused.append(str(error))
            continue
        if not why and len(dataset.numbers) >= EPISODES:
            return dataset
        refused.append(why or f'{path} has {len(dataset.numbers)} episodes on disk, {EPISODES} are needed.')
    if refused:
        raise KiError(f'{VARIABLE} is {folder}, which holds no dataset of {ROBOT} that can be used: {refused[0]}')
    raise KiError(f'{VARIABLE} is {folder}, which holds no LeRobot dataset (no meta/info.json).')


def _work(dataset: LerobotDataset, out: Path, console: Any, steps: int | None) -> Second:
    from ki.commands.train import fit

    episodes = dataset.numbers[:EPISODES]
    run = _run(out, steps)
    _make_room(out, {'dataset': str(dataset.folder.resolve()), 'episodes': list(episodes), 'run': _digest(run)})
    console.print(
        f'{dataset.folder}: episodes {", ".join(map(str, episodes[:-1]))} are trained on, '
        f'episode {episodes[-1]} is held out.',
        highlight=False,
        soft_wrap=True,
    )
    _convert(dataset, episodes[:-1], out / 'train')
    _convert(dataset, episodes[-1:], out / 'held')
    _index(out / 'train')
    bundle = out / 'run' / 'bundle'
    if not (bundle / 'manifest.json').is_file() and fit(run) is None:
        return Second((f'Stopped; what was trained stays in {out}, and the same call goes on.',), stopped=True)
    results: dict[str, dict[str, Any]] = {}
    console.print('Replaying the held-out episode through the code of the node ...')
    for name, denoise_steps in REPLAYS.items():
        if not (out / f'{name}.html').is_file():
            _replay(out / 'held' / f'episode_{episodes[-1]:06d}', bundle, out, name, denoise_steps)
        results[name] = json.loads((out / f'{name}.json').read_text(encoding='utf-8'))['result']
    sentences = _sentences(results['report'], results['sampled'], len(episodes) - 1)
    return Second(tuple(sentences), out / 'report.html', results['report'])


def _run(out: Path, steps: int | None) -> Run:
    from training.train.config import load_run

    run = load_run(share_file('ki_policy_node', f'config/train/{CONFIG}'), out=str(out / 'run'))
    run = run.replace(data=run.data.replace(bags=str(out / 'train' / 'index')))
    if steps is None:
        return run
    stages = tuple(each.replace(steps=steps, warmup=min(each.warmup, max(1, steps // 10))) for each in run.stages)
    return run.replace(stages=stages)


def _digest(run: Run) -> str:
    """Of everything that decides the outcome, wherever it lies."""
    from ki_robot.contract.contract import load_contract

    text = json.dumps(run.to_dict() | {'out': '', 'data': '', 'contract': load_contract(ROBOT).hash}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _make_room(out: Path, about: dict[str, Any]) -> None:
    """Keeps what an earlier call of the same kind has done; removes it when anything it rests on has changed.

    Raises:
        KiError: The folder holds something else.
    """
    path = out / ABOUT
    if out.is_dir() and any(out.iterdir()):
        try:
            known = json.loads(path.read_text(encoding='utf-8'))
        except (OSError, ValueError) as error:
            raise KiError(
                f'{out} holds something else than an earlier demonstration: move it, or give --out.'
            ) from error
        if known == about:
            return
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(about, indent=1) + '\n', encoding='utf-8')


def _convert(dataset: LerobotDataset, episodes: Sequence[int], out: Path) -> None:
    """Episodes as recordings; contract.yaml is written last, so that it says that all are there."""
    from training.lerobot.to_bags import from_lerobot

    if (out / 'contract.yaml').is_file():
        return
    shutil.rmtree(out, ignore_errors=True)
    with progress(f'recordings, {out.name}') as line:
        from_lerobot(dataset.folder, out, ROBOT, episodes, progress=line.to)
    made = [path for path in out.glob('episode_*') if not path.name.endswith('.partial')]
    if len(made) < len(episodes):
        shutil.rmtree(out)
        raise KiError(
            f'{dataset.folder}: {len(episodes) - len(made)} of the episodes {", ".join(map(str, episodes))} cannot be '
            'read; `ki data from-lerobot` says why.'
        )


def _index(recordings: Path) -> None:
    from ki_robot.contract.contract import load_contract
    from training.index.episodes import IndexOptions
    from training.index.index import index_bags

    with progress('indexing') as line:
        workers = os.cpu_count() or 1
        index_bags(
            recordings,
            load_contract(ROBOT),
            recordings / 'index',
            IndexOptions(store='model'),
            workers,
            progress=line.to,
        )


def _replay(bag: Path, bundle: Path, out: Path, name: str, denoise_steps: int) -> None:
    """Every chunk rests on its observation alone, so that no error is carried on or smoothed away."""
    from ki_policy_node.cycle.continuation import Timing
    from ki_policy_node.policy.backends import Wanted, open_policy
    from ki_policy_node.replay import replay_report
    from ki_policy_node.replay.replay import ReplayOptions, replay
    from ki_robot.contract.contract import load_contract

    contract, timing = load_contract(ROBOT), Timing('latest', CYCLE_STEPS)
    policy = open_policy(Wanted('auto', str(bundle), denoise_steps=denoise_steps), contract, timing)
    try:
        policy.warm_up()
        replay_report.write(replay(bag, contract, policy, ReplayOptions(timing)), out, name=name)
    finally:
        policy.close()


def _sentences(result: dict[str, Any], sampled: dict[str, Any], trained_on: int) -> list[str]:
    from ki_policy_node.replay.comparison import POLICY, verdict

    return [
        f'A small policy, trained for minutes on {trained_on} episodes of a real robot, predicted one that it had not '
        f'seen: {result["chunks"]} chunks over {result["seconds"]:.1f} s, compared with what the robot was told.',
        *verdict(result),
        f'That is the mean of what it would do, in one denoising step; sampled in {REPLAYS["sampled"]}, as the node '
        f'does unless told otherwise, it errs by {sampled["error"][POLICY]:.4f}.',
    ]


def _tell(second: Second, out: Path, console: Any) -> None:
    """On the terminal and, where the first part has left its report, in there."""
    from rich.panel import Panel

    from ki_policy_node.reports.web_page import fill

    text = '\n'.join(second.sentences)
    if second.report is None:
        colour = 'yellow'
        console.print(Panel(text, title='SECOND PART NOT SHOWN', border_style=colour, style=colour), highlight=False)
    else:
        console.print(f'{text}\nLook at {second.report}.', highlight=False, soft_wrap=True)
    page = out / 'report.html'
    if page.is_file():
        page.write_text(fill(page.read_text(encoding='utf-8'), PLACE, section(second, out)), encoding='utf-8')


def section(second: Second, out: Path) -> str:
    """What the report of the first part says of the second, as HTML."""
    from ki_policy_node.reports.web_page import render

    link = str(second.report.relative_to(out)) if second.report else ''
    return render('real_part.html', sentences=second.sentences, link=link)
