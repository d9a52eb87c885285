"""The report on episodes that were driven through the node: one HTML file that holds its pictures and plots.

It is made from the bags and from what is known of the outcomes.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from markupsafe import Markup

from ki_policy_node.errors import NodeError
from ki_policy_node.reports.charts import COLOURS, Chart, Curve, Panel, plotly_script
from ki_policy_node.reports.episode_film import INK, Picture, film
from ki_policy_node.reports.episode_numbers import RecordedEpisode, read_episode
from ki_policy_node.reports.web_page import PageLink, Verdict, image, render
from ki_robot.contract.contract import Contract

STRIP_FRAMES, STRIP_PIXELS = 9, 112
REAL_TIME = 'in real time'
REASONS = 4  # of holds, limits and failures each, that the top of the page names
DISTRIBUTIONS = ('ki_policy_node', 'ros-jazzy-rclpy', 'ros-jazzy-rmw-fastrtps-cpp', 'mujoco', 'torch', 'onnxruntime')


@dataclass(frozen=True)
class EpisodeOutcome:
    """What is known of an episode beside its bag; `success` None: it did not end."""

    instruction: str
    bag: Path
    success: bool | None
    seconds: float
    task: str = ''
    error: str = ''

    @property
    def word(self) -> str:
        """The outcome in one word."""
        return {True: 'success', False: 'failure', None: 'interrupted'}[self.success]


class EpisodeReport:
    """Reads the bags once; then a film, numbers and a page can be had.

    Args:
        contract: The robot.
        outcomes: Of the episodes.
        success: k, n, low and high of the success rate.
        driver: Who made the chunks, as a noun with its article.
        notes: Sentences that nobody may miss.
        pace: How fast time passed; anything but real time is said to have limited the episodes.

    Raises:
        BagError: a bag is not there.
        NodeError: no bag holds a picture.
    """

    def __init__(
        self,
        contract: Contract,
        outcomes: Sequence[EpisodeOutcome],
        success: Mapping[str, Any],
        driver: str,
        notes: Sequence[str] = (),
        pace: str = REAL_TIME,
    ) -> None:
        self.contract, self.outcomes, self.success = contract, outcomes, success
        self.driver, self.notes, self.pace = driver, notes, pace
        self.episodes = [read_episode(each.bag, contract) for each in outcomes]
        if not any(each.frames for each in self.episodes):
            raise NodeError('No recording holds a picture of the contract: was the recorder started with its topics?')

    def film(self) -> list[Picture]:
        """All episodes side by side through the first camera, FILM_HZ frames a second."""
        shown = [
            (outcome.instruction, outcome.success, episode)
            for outcome, episode in zip(self.outcomes, self.episodes, strict=True)
        ]
        return film(shown, self.contract.cameras[0].name)

    def numbers(self) -> dict[str, Any]:
        """All that is counted, as plain data."""
        rows = []
        for outcome, episode in zip(self.outcomes, self.episodes, strict=True):
            rows.append(
                {
                    'instruction': outcome.instruction,
                    'outcome': outcome.word,
                    'seconds': outcome.seconds,
                    'bag': str(outcome.bag),
                    'messages': episode.messages,
                    'chunks': len(episode.ages_ms),
                    'chunk_age_ms': _spread(episode.ages_ms),
                    'inference_ms': _spread(episode.inference_ms),
                    'seam_jump': _spread(episode.seams),
                    'safety_events': dict(episode.events),
                    'holds': [reason for _, reason in episode.holds],
                    'executor_lateness_p99_ms': episode.lateness_ms,
                    'rates_hz': {topic: round(rate, 1) for topic, rate in episode.rates_hz.items()},
                }
            )
        return {'success': dict(self.success), 'driver': self.driver, 'episodes': rows, 'versions': versions()}

    def html(self, film: bytes) -> str:
        """The whole file; `film` is a GIF."""
        return render(
            'episodes.html',
            title='What the robot was told, and what it did',
            plotly=plotly_script(),
            verdict=self._verdict(),
            notes=self.notes,
            driver=self.driver,
            pace=self.pace,
            cameras=len(self.contract.cameras),
            film=image(film, 'gif', 'the episodes side by side'),
            cards=self._cards(),
            flow=self._flow(),
            overview=self._overview(),
            episodes=[self._episode(index) for index in range(len(self.outcomes))],
            streams=self._streams(),
            bag=str(self.outcomes[0].bag),
            versions=list(versions().items()),
        )

    def _verdict(self) -> Verdict:
        k, n = self.success['k'], self.success['n']
        if not n:
            return Verdict(
                ['No episode ran to its end, so none was judged.'],
                ['Nothing was measured.'],
                self._limits(),
                self._next(),
            )
        return Verdict(
            worked=[f'{k} of {n} instructions were carried out, driven by {self.driver}.'],
            sure=[
                f'With {n} episodes the success rate lies between {self.success["low"]:.0%} and '
                f'{self.success["high"]:.0%} (95 % interval).',
                'Each outcome was judged by whoever ran the episodes; all other figures are read from the recordings.',
            ],
            limited=self._limits(),
            next=self._next(),
            good=True if k == n else False if k == 0 else None,
        )

    def _limits(self) -> list[str]:
        """What kept episodes from succeeding or the robot from moving freely, in sentences."""
        failed = [each for each in self.outcomes if each.success is False]
        said = [] if self.pace == REAL_TIME else [f'This machine, which is too slow for real time: {self.pace}.']
        said += [
            f'Failed: “{each.instruction}”{f" ({each.error})" if each.error else ""}.' for each in failed[:REASONS]
        ]
        if len(failed) > REASONS:
            said.append(f'{len(failed) - REASONS} more failures are listed below.')
        open_ones = sum(each.success is None for each in self.outcomes)
        if open_ones:
            said.append(f'{open_ones} {_plural("episode", open_ones)} interrupted before the end.')
        holds = Counter(reason for each in self.episodes for _, reason in each.holds)
        said += [f'Held {_times(count)}: {reason}.' for reason, count in holds.most_common(REASONS)]
        events: Counter[str] = sum((each.events for each in self.episodes), Counter())
        said += [f'Limited or refused {_times(count)}: {kind}.' for kind, count in events.most_common(REASONS)]
        return said or ['Nothing: no failure, no hold, no command that had to be limited.']

    def _next(self) -> list[PageLink]:
        """What to look at first: what went wrong, else the first episode; then what to do with the recordings."""
        wrong = [number for number, each in enumerate(self.outcomes, 1) if not each.success]
        held = [number for number, each in enumerate(self.episodes, 1) if each.holds]
        links = [PageLink(f'episode-{number}', f'Episode {number}, which did not succeed') for number in wrong[:1]]
        links += [
            PageLink(f'episode-{number}', f'Episode {number}, in which the robot was held') for number in held[:1]
        ]
        first = PageLink('episode-1', 'What the cameras saw and how the joints moved')
        return [*(links or [first]), PageLink('next', 'What to do with the recordings')]

    def _cards(self) -> list[tuple[str, str]]:
        ages = [age for each in self.episodes for age in each.ages_ms]
        seams = [jump for each in self.episodes for jump in each.seams]
        late = [each.lateness_ms for each in self.episodes if each.lateness_ms is not None]
        success = self.success
        return [
            (
                f'{success["k"]} of {success["n"]}',
                f'succeeded; 95 % interval {success["low"]:.0%} to {success["high"]:.0%}',
            ),
            (f'{sum(each.seconds for each in self.outcomes):.0f} s', 'of motion'),
            (str(len(ages)), 'chunks of actions'),
            (
                f'{_percentile(ages, 50):.0f} ms',
                f'median age of a chunk on arrival; p99 {_percentile(ages, 99):.0f} ms',
            ),
            (f'{max(late, default=0.0):.1f} ms', 'p99 lateness of the executor, worst episode'),
            (f'{max(seams, default=0.0):.4f}', 'rad or m: largest jump between two chunks'),
            (str(sum(sum(each.events.values()) for each in self.episodes)), 'commands changed or refused for safety'),
        ]

    def _flow(self) -> list[tuple[str, str]]:
        return [
            ('robot', f'{len(self.contract.cameras)} cameras, joints, base'),
            (
                self.driver.removeprefix('the '),
                f'{self.contract.horizon} steps of {len(self.contract.actions)} numbers a chunk',
            ),
            ('chunk executor', 'times, limits, holds'),
            ('controllers', f'{len(self.contract.outputs)} command topics'),
        ]

    def _overview(self) -> list[tuple[object, ...]]:
        return [
            (
                index,
                outcome.instruction,
                outcome.word,
                f'{outcome.seconds:.1f} s',
                len(episode.ages_ms),
                f'{_percentile(episode.ages_ms, 50):.0f} ms',
                f'{max(episode.ages_ms, default=0.0):.0f} ms',
                sum(episode.events.values()),
                len(episode.holds),
            )
            for index, (outcome, episode) in enumerate(zip(self.outcomes, self.episodes, strict=True), 1)
        ]

    def _episode(self, index: int) -> dict[str, object]:
        outcome, episode = self.outcomes[index], self.episodes[index]
        facts = [f'{outcome.seconds:.1f} s', outcome.task, outcome.bag.name, outcome.error]
        facts += [f'{count} x {kind}' for kind, count in episode.events.items()]
        facts += [f'held at {at:.1f} s: {reason}' for at, reason in episode.holds]
        if episode.unread:
            facts.append(f'messages that do not decode: {episode.unread}')
        if episode.inference_ms:
            facts.append(f'inference p50 {_percentile(episode.inference_ms, 50):.0f} ms')
        chart = self._joints(episode)
        return {
            'instruction': outcome.instruction,
            'outcome': outcome.word,
            'facts': [fact for fact in facts if fact],
            'strip': self._strip(episode),
            'chart': chart.interactive(f'joints-{index + 1}') if chart.panels else '',
        }

    def _strip(self, episode: RecordedEpisode) -> Markup | str:
        """What the cameras saw from the beginning to the end, a row each; empty without pictures."""
        if not episode.frames:
            return ''
        size, names = STRIP_PIXELS, self.contract.camera_names
        chosen = np.unique(np.linspace(0, len(episode.frames) - 1, STRIP_FRAMES).round().astype(int))
        sheet = np.full((len(names) * (size + 2) + 16, len(chosen) * (size + 2), 3), 255, np.uint8)
        for column, frame in enumerate(chosen):
            log_ns, images = episode.frames[frame]
            left = column * (size + 2)
            text = f'{(log_ns - episode.begin_ns) / 1e9:.1f} s'
            cv2.putText(sheet, text, (left + 2, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.38, INK, 1, cv2.LINE_AA)
            for row, name in enumerate(names):
                if name in images:
                    top = 16 + row * (size + 2)
                    small = cv2.resize(images[name], (size, size), interpolation=cv2.INTER_AREA)
                    sheet[top : top + size, left : left + size] = small
        _, coded = cv2.imencode('.jpg', sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 88])
        return image(coded.tobytes(), 'jpeg', ', '.join(names))

    def _joints(self, episode: RecordedEpisode) -> Chart:
        """Every commanded joint: where it was sent (dashed) and where it was."""
        groups: dict[str, list[str]] = {}
        robot = self.contract.robot
        for output in robot.outputs:
            known = [name for name in output.columns if name in episode.commanded or name in episode.measured]
            if known:
                unit = next(column.unit for column in robot.actions if column.name == known[0])
                key = 'grippers [m]' if len(output.columns) == 1 else f'{output.name} [{unit}]'
                groups.setdefault(key, []).extend(known)
        panels = []
        # The arms beside each other, what is in their hands after them.
        for title, names in sorted(groups.items(), key=lambda group: -len(group[1])):
            curves = [
                Curve(rows[:, 0], rows[:, 1], name.removesuffix('/position'), COLOURS[number % len(COLOURS)], dashed)
                for number, name in enumerate(names)
                for series, dashed in ((episode.measured, False), (episode.commanded, True))
                if (rows := series.get(name)) is not None and len(rows)
            ]
            panels.append(Panel(title, tuple(curves), 's'))
        return Chart(tuple(panels), columns=max(1, len(panels)))

    def _streams(self) -> list[tuple[str, str, str]]:
        rows = []
        for topic in sorted({topic for each in self.episodes for topic in each.rates_hz}):
            rates = [each.rates_hz[topic] for each in self.episodes if topic in each.rates_hz]
            rows.append((topic, f'{np.mean(rates):.1f}', f'{min(rates):.1f}'))
        return rows


def versions() -> dict[str, str]:
    """What made it."""
    found = {'python': platform.python_version(), 'cores': str(os.cpu_count()), 'machine': platform.machine()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _plural(noun: str, count: int) -> str:
    return f'{noun} was' if count == 1 else f'{noun}s were'


def _times(count: int) -> str:
    return 'once' if count == 1 else f'{count} times'


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Percentiles; empty without values."""
    if not values:
        return {}
    return {'p50': _percentile(values, 50), 'p99': _percentile(values, 99), 'max': float(max(values))}


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0
