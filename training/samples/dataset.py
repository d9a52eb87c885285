"""Samples from an index: what the cameras and joints showed at one step, and what was commanded from there on.

Letters: H horizon, S state columns, N action columns. Images are decoded and resized by the functions of the live node.
"""

from __future__ import annotations

import copy
import hashlib
import io
import itertools
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problems
from ki_common.memory import no_garbage
from ki_robot.contract.contract import Contract
from ki_robot.errors import Rejected
from ki_robot.transforms import needed_side, resize_with_pad
from training.errors import TrainingError
from training.index.episodes import HUMAN, Runs
from training.index.index import EpisodeInfo, Index
from training.index.stored_images import decode_stored
from training.samples.things import PlaceInView, ShownThing, points_at, things_at

KEPT_OUTCOMES = ('unlabeled', 'success')
MEMORY = 2**30  # bytes of arrays that are kept: those of 400,000 moments, so that a data set of any size fits a machine
MAX_SKIPS = 64  # undecodable samples in a row that say the store is broken, not one image


@dataclass(frozen=True)
class Sample:
    """One training example of one robot, in SI.

    Attributes:
        images: Camera -> uint8 (h, w, 3) RGB; a camera without an image at this step is absent.
        state_S: float64.
        actions_HN: float64, absolute; step i is in force from `stamp_ns` + i steps. Masked rows repeat the last one.
        action_mask_H: False beyond the end of the episode, and where no command was known.
        instruction: What the robot was told.
        subtask: What it was doing, where that was recorded; else empty.
        contract: Of the robot: names and units of the columns.
        episode: Which episode, as RECORDING#NUMBER.
        step: Which step of it.
        stamp_ns: When.
        things: What the first view shows, for training heads; None where nobody has looked.
        points: Where in it the thing is that is acted on, and that which it is put on or beside.
        task: Name of the task, where the data have one; else empty.
    """

    images: dict[str, NDArray[np.uint8]]
    state_S: NDArray[np.float64]
    actions_HN: NDArray[np.float64]
    action_mask_H: NDArray[np.bool_]
    instruction: str
    subtask: str
    contract: Contract
    episode: str
    step: int
    stamp_ns: int
    things: tuple[ShownThing, ...] | None = None
    points: tuple[PlaceInView, PlaceInView] = (None, None)
    task: str = ''


class EpisodeDataset:
    """Random access to the usable steps of an index.

    Args:
        index: From `training.index.index.load_index`.
        horizon: Steps of a chunk; the contract's by default.
        outcomes: Episodes of which outcome take part.
        episodes: Positions in `index.episodes` that take part; all by default.
        stride: Every how many steps a sample begins.
        first: Only so many steps from the start of each episode; all by default.
        human: Only steps that a human drove, and of their chunks what a human did; a correction ends where the policy
            goes on.
        kept: Position in `index.episodes` -> (first step, step after the last) that take part; all by default.
        resize: Give images as squares of the model's size, by `resize_with_pad`.
        picture_size: Of the square that a policy is shown, where its JPEGs are decoded reduced; None: at their size.
            May be set later.

    Raises:
        TrainingError: No usable step is left.
    """

    def __init__(
        self,
        index: Index,
        horizon: int | None = None,
        outcomes: Collection[str] = KEPT_OUTCOMES,
        episodes: Collection[int] | None = None,
        stride: int = 1,
        resize: bool = True,
        first: int | None = None,
        human: bool = False,
        kept: Mapping[int, tuple[int, int]] | None = None,
        picture_size: int | None = None,
    ) -> None:
        self.index = index
        self.contract = index.contract
        self.horizon = horizon or index.contract.horizon
        self.resize, self.human, self._kept = resize, human, kept
        self.picture_size = picture_size
        self.problems = Problems()
        self._lock = threading.Lock()
        self._arrays: OrderedDict[int, dict[str, NDArray[Any]]] = OrderedDict()
        self._bytes = 0
        self._whole: set[int] = set()  # episodes whose files were compared with their hashes
        self._episodes = index.episodes
        wanted = range(len(self._episodes)) if episodes is None else set(episodes)
        taking_part = [
            (number, about)
            for number, (_, about) in enumerate(self._episodes)
            if number in wanted and about.outcome in outcomes
        ]
        self._where = starts_of(taking_part, stride, first, human, kept)
        bounds = np.flatnonzero(np.diff(self._where[:, 0])) + 1
        self._bounds = np.concatenate([[0], bounds, [len(self._where)]]) if len(self._where) else np.zeros(1, int)
        if not len(self._where) and human:
            raise TrainingError(
                f'{index.folder} holds no usable step that a human drove; record them with the topic control_source, '
                'or leave data.interventions out.'
            )
        if not len(self._where):
            raise TrainingError(
                f'{index.folder} holds no usable step of an episode with outcome {" or ".join(outcomes)}; '
                'see what `ki data show` says about it.'
            )
        self.arrays(self.episode_numbers[0])  # what is wrong with all of them is said before the first step

    def __len__(self) -> int:
        return len(self._where)

    def __getitem__(self, position: int) -> Sample:
        """The sample at a position; where an image does not decode, the next one that does, counted in `problems`.

        Raises:
            TrainingError: Too many do not decode.
        """
        for skip in range(MAX_SKIPS):
            number, step = (int(each) for each in self._where[(position + skip) % len(self._where)])
            try:
                return self._sample(number, step)
            except Rejected as error:
                with self._lock:
                    self.problems.add(self._episodes[number][0].path, 'images', 'undecodable', str(error))
        raise TrainingError(
            f'{self.index.folder}: {MAX_SKIPS} samples in a row hold an image that does not decode; '
            'run `ki data check --deep`.'
        )

    def arrays(self, number: int) -> dict[str, NDArray[Any]]:
        """All arrays of one episode (see `training.index.episodes.Episode`); the last `MEMORY` bytes read are kept.

        Raises:
            TrainingError: Its file was changed, cannot be read, or holds chunks shorter than the horizon.
        """
        with self._lock:
            known = self._arrays.get(number)
            if known is not None:
                self._arrays.move_to_end(number)
                return known
        known = self._read(number)
        with self._lock:
            if number not in self._arrays:  # else another thread was first
                self._bytes += _size(known)
            self._arrays[number] = known
            while self._bytes > MEMORY and len(self._arrays) > 1:
                self._bytes -= _size(self._arrays.popitem(last=False)[1])
        return known

    def _read(self, number: int) -> dict[str, NDArray[Any]]:
        entry, about = self._episodes[number]
        path = entry.folder / about.file
        try:
            data = path.read_bytes()
            if number not in self._whole and hashlib.sha256(data).hexdigest() != entry.files.get(about.file):
                raise TrainingError(f'{path} was changed after it was written; remove its folder and index again.')
            self._whole.add(number)
            with np.load(io.BytesIO(data)) as stored:
                found = {name: stored[name] for name in stored.files}
        except (OSError, ValueError, KeyError) as error:
            raise TrainingError(f'{path} cannot be read ({error}); index again.') from error
        if 'chunks' in found and found['chunks'].shape[1] < self.horizon:
            raise TrainingError(
                f'{entry.path} holds chunks of {found["chunks"].shape[1]} steps, and {self.horizon} are asked for; '
                'make moments with that horizon (simulate), or train with a shorter one (model.horizon).'
            )
        return found

    @property
    def episode_numbers(self) -> list[int]:
        """The episodes that take part, by position in `index.episodes`."""
        return [int(number) for number in self._where[self._bounds[:-1], 0]]

    def only(self, numbers: Sequence[int]) -> EpisodeDataset:
        """The same with some of its episodes, which are 0, 1 ... in it: little to send to another process."""
        found = copy.copy(self)
        chosen = [self._episodes[number] for number in numbers]
        entries = tuple(replace(entry, episodes=(about,), problems=(), streams={}) for entry, about in chosen)
        found.index = replace(self.index, entries=entries)
        found._episodes, found._whole, found.problems = found.index.episodes, set(), Problems()
        pieces = [self._starts_of(number) for number in numbers]
        places = np.repeat(np.arange(len(numbers), dtype=np.int32), [len(piece) for piece in pieces])
        found._where = np.stack([places, np.concatenate(pieces)], axis=1)
        found._bounds = np.concatenate([[0], np.cumsum([len(piece) for piece in pieces])])
        if self._kept is not None:
            found._kept = {place: self._kept[number] for place, number in enumerate(numbers) if number in self._kept}
        return found

    def forget(self) -> None:
        """Gives the memory of all arrays back."""
        with self._lock:
            self._arrays.clear()
            self._bytes = 0

    def _starts_of(self, number: int) -> NDArray[np.int32]:
        """The steps of one episode at which a sample begins."""
        place = int(np.searchsorted(self._where[self._bounds[:-1], 0], number))
        return self._where[self._bounds[place] : self._bounds[place + 1], 1]

    def chunk(self, number: int, step: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Actions (H, N) from one step on, and which of them are known (H,)."""
        actions_1HN, mask_1H = self.chunks(number, np.array([step]))
        # Unknown steps repeat the last known one: they carry no loss, but must stay finite and smooth.
        last = np.maximum.accumulate(np.where(mask_1H[0], np.arange(self.horizon), 0))
        return actions_1HN[0, last], mask_1H[0]

    def chunks(self, number: int, steps: NDArray[np.integer[Any]]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Actions (n, H, N) from each of some steps on, and which of them are known (n, H); the others mean nothing."""
        arrays = self.arrays(number)
        if 'chunks' in arrays:
            found = arrays['chunks'][steps, : self.horizon].astype(np.float64)
            return found, np.ones(found.shape[:2], dtype=bool)
        actions, known = arrays['actions'], arrays['action_valid'] & self._wanted(number, arrays)
        rows = steps[:, None] + np.arange(self.horizon)[None, :]
        inside = rows < len(actions)
        rows = np.minimum(rows, len(actions) - 1)
        return actions[rows], inside & known[rows]

    def _wanted(self, number: int, arrays: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
        """Which steps (T,) are kept, and by a driver that is wanted."""
        steps = np.arange(len(arrays['stamps']))
        first, end = (0, len(steps)) if self._kept is None else self._kept.get(number, (0, 0))
        inside = (steps >= first) & (steps < end)
        return inside & driven_by_human(arrays) if self.human else inside

    @property
    def thing_words(self) -> dict[str, set[str]]:
        """Every word that the data say of things, by label."""
        found: dict[str, set[str]] = {}
        for number in self.episode_numbers:
            arrays = self.arrays(number)
            for place, label in enumerate(arrays.get('thing_heads', ())):
                found.setdefault(str(label), set()).update(map(str, np.unique(arrays['thing_words'][:, place])))
        return found

    def starts(self) -> NDArray[np.int32]:
        """(number of episode, step) of every sample, (len, 2)."""
        return self._where

    def starts_by_episode(self) -> Iterator[tuple[int, NDArray[np.int32]]]:
        """Each episode that takes part, and the steps of it at which a sample begins."""
        for first, last in itertools.pairwise(self._bounds.tolist()):
            yield int(self._where[first, 0]), self._where[first:last, 1]

    def _sample(self, number: int, step: int) -> Sample:
        entry, about = self._episodes[number]
        arrays = self.arrays(number)
        images = {}
        for camera in self.contract.cameras:
            offset = int(arrays[f'{camera.name}.offset'][step])
            if offset >= 0:
                length = int(arrays[f'{camera.name}.length'][step])
                side = needed_side(camera.crop, self.picture_size)
                image = decode_stored(entry.folder / f'{camera.name}.images', offset, length, side)
                images[camera.name] = resize_with_pad(image, self.contract.image_size) if self.resize else image
        actions_HN, mask_H = self.chunk(number, step)
        return Sample(
            images=images,
            state_S=arrays['state'][step].copy(),
            actions_HN=actions_HN,
            action_mask_H=mask_H,
            instruction=about.texts[int(arrays['text'][step])],
            subtask=about.texts[int(arrays['subtask'][step])],
            contract=self.contract,
            episode=f'{entry.path}#{about.file.removesuffix(".npz").removeprefix("episode_")}',
            step=step,
            stamp_ns=int(arrays['stamps'][step]),
            things=things_at(arrays, step),
            points=points_at(arrays, step),
            task=about.texts[int(arrays['task'][step])] if 'task' in arrays else '',
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_lock': None, '_arrays': OrderedDict(), '_bytes': 0}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def starts_of(
    episodes: Sequence[tuple[int, EpisodeInfo]],
    stride: int = 1,
    most: int | None = None,
    human: bool = False,
    kept: Mapping[int, tuple[int, int]] | None = None,
) -> NDArray[np.int32]:
    """(number of episode, step) of every sample, (n, 2), in order; see `EpisodeDataset` for the choice."""
    runs: list[tuple[int, int, int]] = []
    with no_garbage():
        for number, about in episodes:
            begin, end = (0, about.steps) if kept is None else kept.get(number, (0, 0))
            window = ((begin, min(end, begin + (most or about.steps))),)
            usable = _common(about.runs, about.human) if human else about.runs
            runs += [(number, first, last) for first, last in _common(tuple(usable), window)]
    number_R, first_R, last_R = np.array(runs, dtype=np.int64).reshape(-1, 3).T
    length_R = last_R - first_R
    skip_R = first_R - np.concatenate([[0], np.cumsum(length_R)[:-1]])
    steps = np.arange(int(length_R.sum()), dtype=np.int32) + np.repeat(skip_R.astype(np.int32), length_R)
    where = np.stack([np.repeat(number_R.astype(np.int32), length_R), steps], axis=1)
    return where if stride == 1 else where[steps % stride == 0]


def _common(some: Runs, others: Runs) -> Iterator[tuple[int, int]]:
    """The stretches that lie in both; each of them in order."""
    mine, theirs = 0, 0
    while mine < len(some) and theirs < len(others):
        first, last = max(some[mine][0], others[theirs][0]), min(some[mine][1], others[theirs][1])
        if last > first:
            yield first, last
        if some[mine][1] <= others[theirs][1]:
            mine += 1
        else:
            theirs += 1


def _size(arrays: dict[str, NDArray[Any]]) -> int:
    return sum(each.nbytes for each in arrays.values())


def driven_by_human(arrays: dict[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Which steps (T,) of an episode a human drove; none where it was not recorded who did."""
    driver = arrays.get('driver')
    return np.zeros(len(arrays['stamps']), dtype=bool) if driver is None else driver == HUMAN


def split_episodes(
    index: Index,
    fraction: float,
    seed: int = 0,
    outcomes: Collection[str] | None = None,
    recordings: Collection[str] | None = None,
) -> tuple[list[int], list[int]]:
    """Episodes to train on and to hold out; an episode stays on its side when others are added.

    Args:
        index: Whose episodes.
        fraction: Roughly how many to hold out, 0..1; at least one when it is above 0 and there are two.
        seed: Another seed, another split.
        outcomes: Only episodes of these outcomes; all by default.
        recordings: Only episodes of recordings with these hashes; all by default.
    """
    scores = []
    for number, (entry, about) in enumerate(index.episodes):
        if outcomes is not None and about.outcome not in outcomes:
            continue
        if recordings is not None and entry.sha256 not in recordings:
            continue
        digest = hashlib.sha256(f'{seed} {entry.sha256} {about.file}'.encode()).digest()
        scores.append((int.from_bytes(digest[:8], 'big') / 2**64, number))
    held = {number for score, number in scores if score < fraction and len(scores) > 1}
    if fraction > 0 and len(scores) > 1:
        if not held:
            held = {min(scores)[1]}
        if len(held) == len(scores):
            held.discard(max(scores)[1])
    return [number for _, number in scores if number not in held], sorted(held)
