"""The report on episodes that were driven through the node: one HTML file that holds its pictures, and a film.

It is made from the bags and from what was told of the outcomes. T frames of (H, W, 3) pixels.
"""

from __future__ import annotations

import bisect
import html
import importlib.metadata
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ki_policy_node.errors import NodeError
from ki_policy_node.reports.episode_numbers import FILM_HZ, Episode, read
from ki_policy_node.reports.web_page import figure, image, page, place, plot, table
from ki_robot.contract.contract import Contract

__all__ = ['FILM_HZ', 'Report', 'Told']

Picture = NDArray[np.uint8]
STRIP_FRAMES, STRIP_PIXELS = 9, 112
CELL, CAPTION, MOST_COLUMNS = 200, 34, 5
FILM_SECONDS, LAST_LOOK_S = 30.0, 2.0
GREEN, RED, GREY, INK = (46, 125, 50), (198, 40, 40), (150, 150, 150), (40, 40, 40)
DISTRIBUTIONS = ('ki_policy_node', 'ros-jazzy-rclpy', 'ros-jazzy-rmw-fastrtps-cpp', 'mujoco', 'torch', 'onnxruntime')
STYLE = """.note{background:#fff4c2;border-left:6px solid #e0a800;padding:.7em 1em;margin:1em 0}
.cards{display:flex;flex-wrap:wrap;gap:.8em;margin:1.2em 0}
.card{background:#f4f6f8;border-radius:8px;padding:.7em 1.1em}
.card b{display:block;font-size:1.7em;line-height:1.2}.card span{color:#666;font-size:.85em}
.flow{display:flex;flex-wrap:wrap;align-items:center;gap:.4em;margin:1em 0}
.flow div{border:1px solid #b8c4ce;border-radius:6px;padding:.35em .7em;text-align:center;background:#fff}
.flow small{display:block}.episode{border-top:1px solid #ddd;margin-top:1.6em;padding-top:.4em}
.episode h3{margin:.5em 0 .2em}.badge{border-radius:4px;color:#fff;padding:.1em .5em;font-size:.8em}
.yes{background:#2e7d32}.no{background:#c62828}.open{background:#888}td:nth-child(2),th:nth-child(2){text-align:left}"""


@dataclass(frozen=True)
class Told:
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


class Report:
    """Reads the bags once; then a film, numbers and a page can be had.

    Args:
        contract: The robot.
        told: The episodes.
        success: k, n, low and high of the success rate.
        driver: Who made the chunks, as a noun with its article.
        notes: Sentences that nobody may miss.

    Raises:
        BagError: a bag is not there.
        NodeError: no bag holds a picture.
    """

    def __init__(
        self,
        contract: Contract,
        told: Sequence[Told],
        success: Mapping[str, Any],
        driver: str,
        notes: Sequence[str] = (),
    ) -> None:
        self.contract, self.told, self.success, self.driver, self.notes = contract, told, success, driver, notes
        self.episodes = [read(each.bag, contract) for each in told]
        if not any(each.frames for each in self.episodes):
            raise NodeError('No recording holds a picture of the contract: was the recorder started with its topics?')

    # the film -------------------------------------------------------------------------------------------------------

    def film(self) -> list[Picture]:
        """All episodes side by side through the first camera, FILM_HZ frames a second; each waits for the last."""
        longest_s = max((each.frames[-1][0] - each.frames[0][0]) / 1e9 for each in self.episodes if each.frames)
        count = round(min(longest_s + LAST_LOOK_S, FILM_SECONDS) * FILM_HZ)
        columns = min(MOST_COLUMNS, len(self.episodes))
        rows = -(-len(self.episodes) // columns)
        frames = []
        for step in range(count):
            sheet = np.full((rows * (CELL + CAPTION), columns * CELL, 3), 255, np.uint8)
            for index, (told, episode) in enumerate(zip(self.told, self.episodes, strict=True)):
                top, left = index // columns * (CELL + CAPTION), index % columns * CELL
                sheet[top : top + CELL + CAPTION, left : left + CELL] = self._cell(told, episode, step)
            frames.append(sheet)
        return frames

    def _cell(self, told: Told, episode: Episode, step: int) -> Picture:
        cell = np.full((CELL + CAPTION, CELL, 3), 255, np.uint8)
        times = [(log_ns - episode.frames[0][0]) / 1e9 for log_ns, _ in episode.frames]
        place = max(0, bisect.bisect_right(times, step / FILM_HZ) - 1)
        over = place >= len(times) - 1
        if episode.frames:
            seen = episode.frames[place][1].get(self.contract.cameras[0].name)
            if seen is not None:
                cell[CAPTION:] = cv2.resize(seen, (CELL, CELL), interpolation=cv2.INTER_CUBIC)
        colour = GREY if not over or told.success is None else GREEN if told.success else RED
        for line, text in enumerate(_wrapped(told.instruction, CELL - 8)):
            cv2.putText(cell, text, (4, 13 + 14 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.38, INK, 1, cv2.LINE_AA)
        cv2.rectangle(cell, (1, CAPTION), (CELL - 2, CAPTION + CELL - 2), colour, 3 if over else 1)
        return cell

    # numbers --------------------------------------------------------------------------------------------------------

    def numbers(self) -> dict[str, Any]:
        """All that is counted, as plain data."""
        rows = []
        for told, episode in zip(self.told, self.episodes, strict=True):
            rows.append(
                {
                    'instruction': told.instruction,
                    'outcome': told.word,
                    'seconds': told.seconds,
                    'bag': str(told.bag),
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

    # the page -------------------------------------------------------------------------------------------------------

    def html(self, film: bytes) -> str:
        """The whole file; `film` is a GIF."""
        parts = [
            *(f'<p class="note">{html.escape(note)}</p>' for note in self.notes),
            f'<p>A robot with {len(self.contract.cameras)} cameras was told in words what to do, {len(self.told)} '
            f'times. {html.escape(self.driver.capitalize())} drove it, through ROS 2, at the pace of the clock.</p>',
            self._cards(),
            image(film, 'gif', 'the episodes side by side'),
            place('real'),
            '<h2>What was running</h2>',
            self._flow(),
            '<h2>The episodes</h2>',
            self._overview(),
            *(self._episode(index) for index in range(len(self.told))),
            '<h2>Streams</h2>',
            self._streams(),
            '<h2>Go on from here</h2>',
            self._further(),
            '<h2>Made with</h2>',
            table(('', ''), list(versions().items())),
        ]
        return page('What the robot was told, and what it did', parts, STYLE)

    def _cards(self) -> str:
        success, ages = self.success, [age for each in self.episodes for age in each.ages_ms]
        seams = [jump for each in self.episodes for jump in each.seams]
        late = [each.lateness_ms for each in self.episodes if each.lateness_ms is not None]
        cards = [
            (
                f'{success["k"]} of {success["n"]}',
                f'succeeded; 95 % interval {success["low"]:.0%} to {success["high"]:.0%}',
            ),
            (f'{sum(each.seconds for each in self.told):.0f} s', 'of motion'),
            (str(len(ages)), 'chunks of actions'),
            (
                f'{_percentile(ages, 50):.0f} ms',
                f'median age of a chunk on arrival; p99 {_percentile(ages, 99):.0f} ms',
            ),
            (f'{max(late, default=0.0):.1f} ms', 'p99 lateness of the executor, worst episode'),
            (f'{max(seams, default=0.0):.4f}', 'rad or m: largest jump between two chunks'),
            (str(sum(sum(each.events.values()) for each in self.episodes)), 'commands changed or refused for safety'),
        ]
        return (
            f'<div class="cards">{"".join(f"<div class=card><b>{a}</b><span>{b}</span></div>" for a, b in cards)}</div>'
        )

    def _flow(self) -> str:
        boxes = [
            ('robot', f'{len(self.contract.cameras)} cameras, joints, base'),
            (
                html.escape(self.driver.removeprefix('the ')),
                f'{self.contract.horizon} steps of {len(self.contract.actions)} numbers a chunk',
            ),
            ('chunk executor', 'times, limits, holds'),
            ('controllers', f'{len(self.contract.outputs)} command topics'),
        ]
        drawn = ' &rarr; '.join(f'<div>{name}<small>{html.escape(what)}</small></div>' for name, what in boxes)
        return f'<div class="flow">{drawn}</div><p>The recorder heard all of it: one bag an episode.</p>'

    def _overview(self) -> str:
        rows = []
        for index, (told, episode) in enumerate(zip(self.told, self.episodes, strict=True), 1):
            rows.append(
                (
                    index,
                    told.instruction,
                    told.word,
                    f'{told.seconds:.1f} s',
                    len(episode.ages_ms),
                    f'{_percentile(episode.ages_ms, 50):.0f} ms',
                    f'{max(episode.ages_ms, default=0.0):.0f} ms',
                    sum(episode.events.values()),
                    len(episode.holds),
                )
            )
        head = ('', 'instruction', 'outcome', 'time', 'chunks', 'age p50', 'age max', 'limited', 'holds')
        return table(head, rows)

    def _episode(self, index: int) -> str:
        told, episode = self.told[index], self.episodes[index]
        badge = {True: 'yes', False: 'no', None: 'open'}[told.success]
        facts = [f'{told.seconds:.1f} s', told.task, told.bag.name, told.error]
        facts += [f'{count} x {kind}' for kind, count in episode.events.items()]
        facts += [f'held at {at:.1f} s: {reason}' for at, reason in episode.holds]
        if episode.inference_ms:
            facts.append(f'inference p50 {_percentile(episode.inference_ms, 50):.0f} ms')
        return (
            f'<div class="episode"><h3>{index + 1}. &ldquo;{html.escape(told.instruction)}&rdquo; '
            f'<span class="badge {badge}">{told.word}</span></h3>'
            f'<p><small>{html.escape(" · ".join(fact for fact in facts if fact))}</small></p>'
            f'{self._strip(episode)}{plot(self._joints(episode))}</div>'
        )

    def _strip(self, episode: Episode) -> str:
        """What the cameras saw from the beginning to the end, a row each."""
        if not episode.frames:
            return '<p>No picture was recorded.</p>'
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

    def _joints(self, episode: Episode) -> Any:
        """Every commanded joint: where it was sent (dashed) and where it was."""
        groups: dict[str, list[str]] = {}
        for output in self.contract.outputs:
            known = [name for name in output.columns if name in episode.commanded or name in episode.measured]
            if known:
                unit = next(column.unit for column in self.contract.actions if column.name == known[0])
                key = 'grippers [m]' if len(output.columns) == 1 else f'{output.name} [{unit}]'
                groups.setdefault(key, []).extend(known)
        # The arms beside each other, what is in their hands after them.
        ordered = sorted(groups.items(), key=lambda group: -len(group[1]))
        drawn = figure(11, 2.3)
        if not ordered:
            return drawn
        for axes, (title, names) in zip(drawn.subplots(1, len(ordered), squeeze=False)[0], ordered, strict=True):
            for number, name in enumerate(names):
                for series, style in ((episode.measured, '-'), (episode.commanded, '--')):
                    rows = series.get(name)
                    if rows is not None and len(rows):
                        axes.plot(rows[:, 0], rows[:, 1], style, color=f'C{number}', linewidth=1.0)
            axes.set_title(title, fontsize=9)
            axes.set_xlabel('s', fontsize=8)
            axes.tick_params(labelsize=7)
            axes.plot([], [], '-', color='black', linewidth=1.0, label='measured')
            axes.plot([], [], '--', color='black', linewidth=1.0, label='sent')
        axes.legend(fontsize=7, frameon=False)
        return drawn

    def _streams(self) -> str:
        topics = sorted({topic for each in self.episodes for topic in each.rates_hz})
        rows = []
        for topic in topics:
            rates = [each.rates_hz[topic] for each in self.episodes if topic in each.rates_hz]
            rows.append((topic, f'{np.mean(rates):.1f}', f'{min(rates):.1f}'))
        return table(('topic', 'messages a second', 'in the worst episode'), rows)

    def _further(self) -> str:
        bag = html.escape(str(self.told[0].bag))
        return (
            f'<p><code>ki bag info {bag}</code> what a recording holds (rosbag2, MCAP: Foxglove opens it)<br>'
            f'<code>ki replay {bag} --bundle BUNDLE</code> the recording through the policy again<br>'
            '<code>ki up config/node/synthetic.yaml</code> the nodes without a simulator</p>'
            '<p><small>Solid lines above: measured; dashed: what the executor sent. &ldquo;Limited&rdquo; counts '
            'commands that the executor brought within a limit, or refused.</small></p>'
        )


def versions() -> dict[str, str]:
    """What made it."""
    found = {'python': platform.python_version(), 'cores': str(os.cpu_count()), 'machine': platform.machine()}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _wrapped(text: str, width: int, lines: int = 2) -> list[str]:
    """At most `lines` lines of a caption; what does not fit ends in dots."""
    made = ['']
    for word in text.split():
        longer = f'{made[-1]} {word}'.strip()
        if cv2.getTextSize(longer, cv2.FONT_HERSHEY_SIMPLEX, 0.38, 1)[0][0] <= width:
            made[-1] = longer
        elif len(made) == lines:
            made[-1] += ' ...'
            break
        else:
            made.append(word)
    return made


def _spread(values: Sequence[float]) -> dict[str, float]:
    """Percentiles; empty without values."""
    if not values:
        return {}
    return {'p50': _percentile(values, 50), 'p99': _percentile(values, 99), 'max': float(max(values))}


def _percentile(values: Sequence[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0
