"""Do the cameras see, and do they see when the states say so? Checks on a sample of the pictures.

Letters: T steps, S state columns, H, W height and width of a thumbnail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ki_robot.contract.names import interface_of
from ki_robot.errors import Rejected
from training.doctor.findings import ERROR, NOTE, WARNING, Finding, StepRange
from training.doctor.motion import MOST_PLACES, MOVES, Segment
from training.index.stored_images import decode_stored
from training.samples.dataset import EpisodeDataset

DARK, EVEN = 4.0, 2.0  # grey levels: the mean of a black picture, the spread of one without contours
BLOWN, CRUSHED, CLIPPED_SHARE = 250, 5, 0.4  # grey levels that hold nothing, and how much of a picture may have them
BRIGHTNESS_CHANGE = 60.0  # grey levels between an episode and the others
EPISODES, PROBES = 16, 3  # pictures looked at: of so many episodes, so many of each
THUMBNAIL = 32, 24
SKEW_EPISODES, SKEW_STEPS = 3, 120  # consecutive pictures, for when something moves in them
SKEW_REACH_S, SKEW_S, SKEW_CORRELATION, SKEW_CLEARER = 1.0, 0.15, 0.5, 0.1


@dataclass(frozen=True)
class Probe:
    """A picture of one camera at one step."""

    place: StepRange
    image: NDArray[np.uint8]


def picture_findings(dataset: EpisodeDataset, segments: Sequence[Segment]) -> list[Finding]:
    """All checks of this file, of every camera."""
    found = []
    for camera in dataset.contract.camera_names:
        by_episode, broken = _probes(dataset, camera)
        found += broken
        probes = [probe for each in by_episode for probe in each]
        found += dark_findings(camera, [probe.image for probe in probes])
        found += _frozen(dataset, camera, by_episode)
        if not any(finding.kind == 'black' for finding in found if finding.field == camera):
            found += _exposure(camera, by_episode)
            found += _skew(dataset, camera, segments)
    return found


def picture_at(dataset: EpisodeDataset, camera: str, number: int, step: int) -> NDArray[np.uint8] | None:
    """The picture of a camera at one step of an episode; None where there is none.

    Raises:
        Rejected, OSError: it does not decode.
    """
    arrays = dataset.arrays(number)
    offset, length = int(arrays[f'{camera}.offset'][step]), int(arrays[f'{camera}.length'][step])
    if offset < 0:
        return None
    return decode_stored(dataset.index.episodes[number][0].folder / f'{camera}.images', offset, length)


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A picture in small and grey, (H, W)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)


def _probes(dataset: EpisodeDataset, camera: str) -> tuple[list[list[Probe]], list[Finding]]:
    """Some pictures of some episodes, and the first one that does not decode."""
    numbers, starts = dataset.episode_numbers, dataset.starts()
    made: list[list[Probe]] = []
    broken: list[Finding] = []
    for number in (numbers[each] for each in _spread(len(numbers), EPISODES)):
        steps = starts[starts[:, 0] == number, 1]
        recording = dataset.index.episodes[number][0].path
        made.append([])
        for step in (int(steps[each]) for each in _spread(len(steps), PROBES if len(numbers) > 2 else 3 * PROBES)):
            place = StepRange(recording, number, step, step + 1)
            try:
                image = picture_at(dataset, camera, number, step)
            except (Rejected, OSError) as error:
                text = f'a picture of {camera} does not decode: {error}'
                broken = broken or [Finding(ERROR, camera, 'undecodable', text, (place,))]
                continue
            if image is not None:
                made[-1].append(Probe(place, image))
    return [each for each in made if each], broken


def _spread(count: int, most: int) -> list[int]:
    return [int(each) for each in np.unique(np.linspace(0, count - 1, min(count, most)).round())]


def dark_findings(camera: str, images: Sequence[NDArray[np.uint8]]) -> list[Finding]:
    """Whether a camera sees anything at all; images are uint8 (h, w, 3)."""
    if not images:
        return []
    if max(float(image.mean()) for image in images) < DARK:
        return [Finding(ERROR, camera, 'black', f'camera {camera} is black; is it connected, its lid off?')]
    if max(float(image.std()) for image in images) < EVEN:
        return [Finding(WARNING, camera, 'blank', f'camera {camera} shows one even colour')]
    return []


def _frozen(dataset: EpisodeDataset, camera: str, by_episode: Sequence[Sequence[Probe]]) -> list[Finding]:
    """One picture throughout episodes in which the robot moves."""
    still = [each for each in by_episode if len(each) > 2 and len({probe.image.tobytes() for probe in each}) == 1]
    still = [each for each in still if _moves(dataset, each)]
    if not still:
        return []
    places = tuple(
        StepRange(p[0].place.recording, p[0].place.episode, p[0].place.first, p[-1].place.end) for p in still
    )
    text = (
        f'camera {camera} shows the same picture throughout {len(still)} of the {len(by_episode)} episodes looked at, '
        'while the robot moves; record them again, or leave them out (--trim)'
    )
    return [Finding(ERROR, camera, 'frozen', text, places)]


def _moves(dataset: EpisodeDataset, probes: Sequence[Probe]) -> bool:
    states = dataset.arrays(probes[0].place.episode)['state'][probes[0].place.first : probes[-1].place.end]
    spans = np.ptp(states, axis=0)
    columns = zip(spans, dataset.contract.state, strict=True)
    return any(span > MOVES[column.unit] for span, column in columns if column.unit in MOVES)


def _exposure(camera: str, by_episode: Sequence[Sequence[Probe]]) -> list[Finding]:
    """Pictures that are burnt out or drowned, and episodes under another light."""
    found = []
    probes = [probe for each in by_episode for probe in each]
    for what, share in (
        ('over', [float((probe.image >= BLOWN).mean()) for probe in probes]),
        ('under', [float((probe.image <= CRUSHED).mean()) for probe in probes]),
    ):
        bad = [each for each in np.argsort([-value for value in share]) if share[each] > CLIPPED_SHARE]
        if 2 * len(bad) > len(probes):
            text = (
                f'camera {camera} is {what}exposed: {100 * float(np.median(share)):.0f} % of its pixels hold nothing '
                'in the median picture; set exposure and gain by hand'
            )
            places = tuple(probes[each].place for each in bad[:MOST_PLACES])
            found.append(Finding(WARNING, camera, f'{what}exposed', text, places))
    means = np.array([np.mean([probe.image.mean() for probe in each]) for each in by_episode])
    other = np.flatnonzero(np.abs(means - np.median(means)) > BRIGHTNESS_CHANGE).tolist() if len(means) > 2 else []
    if other:
        text = (
            f'camera {camera} is much brighter or darker in {len(other)} of {len(means)} episodes than in the others '
            f'(by up to {float(np.abs(means - np.median(means)).max()):.0f} of 255); fix exposure and white balance'
        )
        places = tuple(by_episode[each][0].place for each in other[:MOST_PLACES])
        found.append(Finding(NOTE, camera, 'brightness', text, places))
    return found


def _skew(dataset: EpisodeDataset, camera: str, segments: Sequence[Segment]) -> list[Finding]:
    """Whether the picture changes when the states do: wrong stamps show the robot at another time."""
    rate = dataset.contract.rate_hz
    longest = sorted(segments, key=lambda each: each.place.first - each.place.end)[:SKEW_EPISODES]
    pairs = [pair for each in longest if (pair := _activity(dataset, camera, each)) is not None]
    if not pairs:
        return []
    reach = round(SKEW_REACH_S * rate)
    correlations = {lag: _together(pairs, lag) for lag in range(-reach, reach + 1)}  # of every column
    best = max(correlations, key=lambda lag: float(correlations[lag].max()) - 1e-9 * abs(lag))
    column = int(correlations[best].argmax())
    strongest = float(correlations[best][column])
    clear = strongest > SKEW_CORRELATION and strongest - float(correlations[0].max()) > SKEW_CLEARER
    if not clear or abs(best) / rate <= SKEW_S:
        return []
    text = (
        f'the picture of {camera} moves {abs(best) / rate:.2f} s {"after" if best > 0 else "before"} the states do; '
        'look at its stamps (exposure time, driver, clock), or date it by arrival (--trust-log-time)'
    )
    return [Finding(WARNING, camera, 'skew', text, tuple(each.place for each in longest))]


def _activity(
    dataset: EpisodeDataset, camera: str, segment: Segment
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Speed of each state column (T - 1, S) and change of the picture (T - 1,); None where it shows one thing."""
    where = segment.place
    count = min(where.end - where.first, SKEW_STEPS)
    state_TS = segment.state_TS[:count]
    is_speed_S = [interface_of(column.name) == 'velocity' for column in dataset.contract.state]
    speed_TS = np.where(is_speed_S, np.abs(state_TS[1:]), np.abs(np.diff(state_TS, axis=0)))
    small = []
    for step in range(where.first, where.first + count):
        try:
            image = picture_at(dataset, camera, where.episode, step)
        except (Rejected, OSError):
            return None
        if image is None:
            return None
        small.append(thumbnail(image))
    change_T = np.abs(np.diff(np.stack(small), axis=0)).mean(axis=(1, 2), dtype=np.float64)
    return (speed_TS, change_T) if change_T.std() > 1e-6 else None


def _together(pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], lag: int) -> NDArray[np.float64]:
    """Correlation of each state column's speed with the picture's change `lag` steps later, (S,)."""
    found = [np.zeros(pairs[0][0].shape[1])]
    for speed_TS, change_T in pairs:
        first = speed_TS[: len(speed_TS) - lag] if lag >= 0 else speed_TS[-lag:]
        then = change_T[lag:] if lag >= 0 else change_T[: len(change_T) + lag]
        if len(first) <= 20:
            continue
        first, then = first - first.mean(axis=0), then - then.mean()
        scale = np.linalg.norm(first, axis=0) * np.linalg.norm(then)
        found.append(np.where(scale > 1e-9, then @ first / np.maximum(scale, 1e-9), 0.0))
    return np.asarray(np.mean(found[1:] or found, axis=0), dtype=np.float64)
