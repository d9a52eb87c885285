"""Episodes that are there twice, and steps at which the same sight is answered differently.

Letters: E episodes, P pairs or probes, K numbers of a description.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ki_robot.errors import Rejected
from training.doctor.findings import NOTE, WARNING, Finding, StepRange
from training.doctor.motion import MOVES, Segment
from training.doctor.pictures import picture_at, thumbnail
from training.samples.dataset import EpisodeDataset

POINTS = 48  # of a trajectory that is compared
SAME_MOTION = 0.003  # of the span of each column, root mean square
SAME_LENGTH = 0.02
SAME_PICTURE = 3.0  # grey levels, mean over a thumbnail
SAME_STATE = 0.02  # of the span of each column, the largest
OTHER_ACTION = 0.3  # of the span of a column, over the next ANSWER_S
ANSWER_S = 0.5
CONTRADICTED_SHARE = 0.02
MOST_STEPS = 512  # that are compared with one another
MOST_PICTURES = 400  # that are decoded to confirm it


def repeat_findings(dataset: EpisodeDataset, segments: Sequence[Segment]) -> list[Finding]:
    """All checks of this file."""
    return [*duplicate_findings(dataset, segments), *contradiction_findings(dataset)]


def duplicate_findings(dataset: EpisodeDataset, segments: Sequence[Segment]) -> list[Finding]:
    """Episodes with the same words, motion and first picture: copies weigh double and leak into validation."""
    long = [each for each in segments if len(each.state_TS) > 8 and _moves(dataset, each.state_TS)]
    if len(long) < 2:
        return []
    spans_K = _spans(np.concatenate([np.hstack([each.state_TS, each.actions_TN]) for each in long]))
    paths_EK = np.stack([_path(each, spans_K) for each in long])
    lengths_E = np.array([len(each.state_TS) for each in long], dtype=np.float64)
    copies: dict[int, int] = {}
    for later in range(1, len(long)):
        near = np.sqrt(np.mean((paths_EK[:later] - paths_EK[later]) ** 2, axis=1)) < SAME_MOTION
        near &= np.abs(lengths_E[:later] / lengths_E[later] - 1.0) < SAME_LENGTH
        for earlier in np.flatnonzero(near).tolist():
            if _are_copies(dataset, long[earlier].place, long[later].place):
                copies[later] = earlier
                break
    if not copies:
        return []
    later, earlier = next(iter(copies.items()))
    text = (
        f'{len(copies)} of the {len(long)} episodes looked at are copies of another one (first, episode '
        f'{long[later].place.episode} of {long[earlier].place.episode}): they weigh double, and are in training and '
        'validation at once; '
        'leave them out (--trim)'
    )
    return [Finding(WARNING, 'episodes', 'duplicate', text, tuple(long[each].place for each in copies))]


def contradiction_findings(dataset: EpisodeDataset) -> list[Finding]:
    """Steps of two episodes with the same words, state and pictures, and other actions: their mean is learned."""
    starts = dataset.starts()
    chosen = starts[np.unique(np.linspace(0, len(starts) - 1, min(len(starts), MOST_STEPS)).round().astype(int))]
    if any('chunks' in dataset.arrays(int(number)) for number in set(chosen[:, 0].tolist())):
        return []
    steps = max(1, min(round(ANSWER_S * dataset.contract.rate_hz), dataset.horizon))
    states, answers, words = [], [], []
    for number, step in chosen.tolist():
        arrays, about = dataset.arrays(number), dataset.index.episodes[number][1]
        states.append(arrays['state'][step])
        answers.append(dataset.chunk(number, step)[0][:steps].mean(axis=0))
        words.append((about.texts[int(arrays['text'][step])], about.texts[int(arrays['subtask'][step])]))
    state_PK = np.stack(states) / _spans(np.stack(states))
    answer_PK = np.stack(answers) / _spans(np.stack(answers), dataset)
    pairs = []
    for one in range(len(chosen)):
        near = np.abs(state_PK[one + 1 :] - state_PK[one]).max(axis=1) < SAME_STATE
        near &= np.abs(answer_PK[one + 1 :] - answer_PK[one]).max(axis=1) > OTHER_ACTION
        near &= chosen[one + 1 :, 0] != chosen[one, 0]
        pairs += [(one, one + 1 + int(other)) for other in np.flatnonzero(near) if words[one] == words[one + 1 + other]]
    places = [_place(dataset, chosen[each]) for each in range(len(chosen))]
    pairs = [pair for pair in pairs[: MOST_PICTURES // 2] if _look_alike(dataset, places[pair[0]], places[pair[1]])]
    torn = {each for pair in pairs for each in pair}
    if len(torn) < CONTRADICTED_SHARE * len(chosen) or not pairs:
        return []
    worst = sorted(pairs, key=lambda pair: -float(np.abs(answer_PK[pair[0]] - answer_PK[pair[1]]).max()))
    column = int(np.abs(answer_PK[worst[0][0]] - answer_PK[worst[0][1]]).argmax())
    text = (
        f'{len(torn)} of {len(chosen)} steps looked at have a twin in another episode with the same words, state and '
        f'pictures, and another action (most in {dataset.contract.action_names[column]}): a policy learns their mean; '
        'say the difference in the instruction, or show it to a camera'
    )
    level = WARNING if len(torn) > 5 * CONTRADICTED_SHARE * len(chosen) else NOTE
    return [
        Finding(level, 'episodes', 'contradiction', text, tuple(places[each] for pair in worst[:2] for each in pair))
    ]


def _path(segment: Segment, spans_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """States and actions at POINTS evenly spread moments, in spans of their columns."""
    values_TK = np.hstack([segment.state_TS, segment.actions_TN]) / spans_K
    at = np.linspace(0, len(values_TK) - 1, POINTS)
    return np.concatenate([np.interp(at, np.arange(len(values_TK)), column_T) for column_T in values_TK.T])


def _spans(values_PK: NDArray[np.float64], dataset: EpisodeDataset | None = None) -> NDArray[np.float64]:
    """How far each column reaches; at least what counts as motion, for actions."""
    low, high = np.quantile(values_PK, [0.01, 0.99], axis=0)
    least = 1e-3 if dataset is None else np.array([MOVES.get(each.unit, 1.0) for each in dataset.contract.actions])
    return np.asarray(np.maximum(high - low, least), dtype=np.float64)


def _moves(dataset: EpisodeDataset, state_TS: NDArray[np.float64]) -> bool:
    spans = np.ptp(state_TS, axis=0)
    columns = zip(spans, dataset.contract.state, strict=True)
    return any(span > MOVES[column.unit] for span, column in columns if column.unit in MOVES)


def _look_alike(dataset: EpisodeDataset, one: StepRange, other: StepRange) -> bool:
    """Whether every camera shows the same at the first steps of two places; without pictures they do."""
    for camera in dataset.contract.camera_names:
        try:
            images = [picture_at(dataset, camera, each.episode, each.first) for each in (one, other)]
        except (Rejected, OSError):
            return False
        seen = [image for image in images if image is not None]
        if len(seen) == 1:
            return False
        if len(seen) == 2 and float(np.abs(thumbnail(seen[0]) - thumbnail(seen[1])).mean()) > SAME_PICTURE:
            return False
    return True


def _are_copies(dataset: EpisodeDataset, one: StepRange, other: StepRange) -> bool:
    episodes = dataset.index.episodes
    said = episodes[one.episode][1].texts[:1] == episodes[other.episode][1].texts[:1]
    return one.episode != other.episode and said and _look_alike(dataset, one, other)


def _place(dataset: EpisodeDataset, start: NDArray[np.int32]) -> StepRange:
    number, step = int(start[0]), int(start[1])
    return StepRange(dataset.index.episodes[number][0].path, number, step, step + 1)
