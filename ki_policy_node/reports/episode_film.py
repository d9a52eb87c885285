"""A film of recorded episodes side by side, each with its instruction and, at its end, its outcome.

T frames of (H, W, 3) pixels.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from ki_policy_node.reports.episode_numbers import FILM_HZ, RecordedEpisode

Picture = NDArray[np.uint8]
CELL, CAPTION, MOST_COLUMNS = 200, 34, 5
FILM_SECONDS, LAST_LOOK_S = 30.0, 2.0
GREEN, RED, GREY, INK = (46, 125, 50), (198, 40, 40), (150, 150, 150), (40, 40, 40)


def film(episodes: Sequence[tuple[str, bool | None, RecordedEpisode]], camera: str) -> list[Picture]:
    """FILM_HZ frames a second, as long as the longest episode; the others wait at their last picture.

    Args:
        episodes: Instruction, success (None: not judged) and recording of each; one at least holds a picture.
        camera: The one that is shown.
    """
    longest_s = max((each.frames[-1][0] - each.frames[0][0]) / 1e9 for _, _, each in episodes if each.frames)
    count = round(min(longest_s + LAST_LOOK_S, FILM_SECONDS) * FILM_HZ)
    columns = min(MOST_COLUMNS, len(episodes))
    rows = -(-len(episodes) // columns)
    frames = []
    for step in range(count):
        sheet = np.full((rows * (CELL + CAPTION), columns * CELL, 3), 255, np.uint8)
        for index, (instruction, success, episode) in enumerate(episodes):
            top, left = index // columns * (CELL + CAPTION), index % columns * CELL
            cell = _cell(instruction, success, episode, camera, step)
            sheet[top : top + CELL + CAPTION, left : left + CELL] = cell
        frames.append(sheet)
    return frames


def _cell(instruction: str, success: bool | None, episode: RecordedEpisode, camera: str, step: int) -> Picture:
    cell = np.full((CELL + CAPTION, CELL, 3), 255, np.uint8)
    times = [(log_ns - episode.frames[0][0]) / 1e9 for log_ns, _ in episode.frames]
    place = max(0, bisect.bisect_right(times, step / FILM_HZ) - 1)
    over = place >= len(times) - 1
    if episode.frames:
        seen = episode.frames[place][1].get(camera)
        if seen is not None:
            cell[CAPTION:] = cv2.resize(seen, (CELL, CELL), interpolation=cv2.INTER_CUBIC)
    colour = GREY if not over or success is None else GREEN if success else RED
    for line, text in enumerate(_wrapped(instruction, CELL - 8)):
        cv2.putText(cell, text, (4, 13 + 14 * line), cv2.FONT_HERSHEY_SIMPLEX, 0.38, INK, 1, cv2.LINE_AA)
    cv2.rectangle(cell, (1, CAPTION), (CELL - 2, CAPTION + CELL - 2), colour, 3 if over else 1)
    return cell


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
