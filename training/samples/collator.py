"""From draws of a mixture to batches: what is random about a sample follows the number of its draw alone.

So a run draws the same samples, crops and noise on one process and on eight, and after a restart; no generator needs
to be saved.

Legend: R draws of (tau, noise) for each sample, H horizon, A action dims, V views, B batch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ki_robot.contract.parts import Camera
from ki_vla.errors import VlaError
from ki_vla.model import flow
from ki_vla.model.dense import labelled
from ki_vla.model.kivla import Prefix
from ki_vla.objective.batch import Batch, collate
from ki_vla.objective.patch_labels import Thing, patch_labels
from ki_vla.objective.recipes import Recipe
from ki_vla.policy.processor import Processor
from ki_vla.tokens.prompt import plain_prompt
from training.errors import TrainingError
from training.samples.augment import augment
from training.samples.dataset import Sample
from training.samples.mixture import Draw
from training.samples.things import PlaceInView
from training.samples.vlm_data import VlmSample
from training.train.config import Augment

LOC = re.compile(r'<loc(\d{4})>')
LOC_BINS = 1024  # box steps in files, as PaliGemma counts them


@dataclass(frozen=True)
class Packet:
    """A batch and the noise it is trained with.

    Attributes:
        batch: the samples.
        noise_BRHA, tau_BR: the draws of each sample.
        numbers: of the draws.
        texts: instruction or question of each sample.
        answers: what is to be said to a question; empty for action samples.
        group: task or kind of all of them, where they are of one.
        prefix: what the backbone makes of them, where it is kept (`training.train.kept`).
    """

    batch: Batch
    noise_BRHA: Tensor
    tau_BR: Tensor
    numbers: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    answers: tuple[str, ...] = ()
    group: str = ''
    prefix: Prefix | None = None

    def to(self, device: torch.device | str) -> Packet:
        """On another device."""
        moved = [t.to(device, non_blocking=True) for t in (self.noise_BRHA, self.tau_BR)]
        return replace(self, batch=self.batch.to(device, non_blocking=True), noise_BRHA=moved[0], tau_BR=moved[1])

    def pin_memory(self) -> Packet:
        """In page-locked memory."""
        noise, tau = self.noise_BRHA.pin_memory(), self.tau_BR.pin_memory()
        return replace(self, batch=self.batch.pin_memory(), noise_BRHA=noise, tau_BR=tau)


@dataclass(frozen=True)
class Collator:
    """Draws -> Packet; runs in the loader's workers, so it holds only what can be sent there.

    Attributes:
        processor: of the policy.
        others: of the other robots that train it, by the name of their contract.
        seed: of the run and stage.
        draws: R.
        subtask: share of action samples that also say what comes next; for a policy of two levels, of those that say
            it, while the others act on it.
        how: augmentation; None for evaluation.
        pin: give page-locked memory.
        silent: what is done carries no loss as tokens, so samples with actions have no targets.
    """

    processor: Processor
    seed: int
    draws: int = 1
    subtask: float = 0.0
    how: Augment | None = None
    pin: bool = False
    silent: bool = False
    others: Mapping[str, Processor] = field(default_factory=dict)

    def __call__(self, drawn: Sequence[Draw]) -> Packet:
        """One packet; samples without actions come first, else in the order of the draws."""
        import cv2

        cv2.setNumThreads(0)  # many small pictures: a pool of threads costs more than it brings
        made = sorted(((draw, *self._sample(draw)) for draw in drawn), key=lambda each: _acts(each[1]))
        rows = [row | _SILENCE if self.silent and _acts(row) else row for _, row, _, _ in made]
        config = self.processor.config
        noise, tau = [], []
        for draw, *_ in made:
            generator = torch.Generator().manual_seed(mixed(self.seed, draw.number))
            noise.append(flow.sample_noise((self.draws, config.horizon, config.action_dim), generator))
            tau.append(flow.sample_tau((self.draws,), generator))
        batch = collate(rows, self.processor.tokenizer.vocabulary.pad)
        batch = replace(batch, first_acting=sum(not _acts(row) for row in rows))
        packet = Packet(
            _with_targets(batch).check(config, values=True),
            torch.stack(noise),
            torch.stack(tau),
            tuple(draw.number for draw, *_ in made),
            tuple(text for _, _, text, _ in made),
            tuple(answer for *_, answer in made),
        )
        return packet.pin_memory() if self.pin else packet

    def _sample(self, draw: Draw) -> tuple[dict[str, np.ndarray], str, str]:
        rng = np.random.default_rng([self.seed, 3, draw.number + 1])
        says, sample, answer = rng.random(), draw.sample, ''
        if isinstance(sample, Sample):
            processor = self.others.get(sample.contract.name, self.processor)
            said = requantised(sample.subtask, processor.tokenizer.vocabulary.loc_bins)
            moment = (sample.images, sample.state_S, sample.instruction)
            chunk: dict[str, Any] = {'actions': sample.actions_HN, 'steps': sample.action_mask_H}
            says_now = says < self.subtask and bool(said)
            if not processor.processing.subtasks:
                row = processor.action_sample(*moment, **chunk, text=said if says_now else None)
            elif says_now:
                row = processor.subtask_sample(*moment, said)
            else:
                row = processor.action_sample(*moment, **chunk, subtask=said)
            boxed = '<loc' in said and (says_now or processor.processing.subtasks)
            fixed = [boxed or camera.kind == 'wrist' for camera in processor.contract.cameras]
            asked = sample.instruction
            first: Camera | None = processor.contract.cameras[0]
            pictures = [sample.images[first.name]] if first is not None and first.name in sample.images else []
        elif isinstance(sample, VlmSample):
            answer = requantised(sample.answer, self.processor.tokenizer.vocabulary.loc_bins)
            asked = requantised(sample.question, self.processor.tokenizer.vocabulary.loc_bins)
            row = self.processor.text_sample(sample.images, asked, answer)
            fixed = ['<loc' in answer or '<loc' in asked] * len(row['images_VCHW'])
            first, pictures = None, list(sample.images[:1])
        else:
            raise TrainingError(f'source {draw.part} gave a {type(sample).__name__}, which is no sample.')
        if self.processor.config.dense is not None:
            labels = self._seen(sample, first, pictures, len(row['images_VCHW']))
            row |= labels
            if np.isfinite(labels['points_M2']).any() or sample.things is not None:
                fixed[0] = True  # what the labels say of a place must stay there
        if self.how is not None:
            row['images_VCHW'] = augment(row['images_VCHW'], row['image_mask_V'], fixed, self.how, rng)
        return row, asked, answer

    def _seen(
        self, sample: Sample | VlmSample, camera: Camera | None, pictures: Sequence[np.ndarray], views: int
    ) -> dict[str, np.ndarray]:
        """What the first view shows, and where the things are that are asked for, as labels of patches.

        Args:
            sample: with places in the whole first picture.
            camera: whose picture that is; None for one from anywhere.
            pictures: the first one, where it is there.
            views: of the example.
        """
        config, things = self.processor.config, sample.things
        if not pictures:
            return patch_labels(config, views, None)
        height, width = pictures[0].shape[:2]
        place = partial(self.processor.in_view, camera, height, width)
        found = None if things is None else [Thing(*place(each.x, each.y), each.words) for each in things]
        points = sample.points
        if isinstance(sample, Sample) and not any(points):
            points = middle_of_box(sample.subtask), None
        return patch_labels(config, views, found, [None if each is None else place(*each) for each in points])


def misfit(processor: Processor, question: str, answer: str, pictures: int) -> str:
    """Why a policy cannot be taught a question about pictures, as `Collator` would; empty where it can."""
    config, tokenizer = processor.config, processor.tokenizer
    if pictures > config.views:
        return f'{pictures} pictures, and model.views is {config.views}'
    bins = tokenizer.vocabulary.loc_bins
    try:
        shorten = processor.processing.truncate_prompt
        plain_prompt(tokenizer, requantised(question, bins), limit=config.max_prompt, truncate=shorten)
        tokens = len(tokenizer.encode(requantised(answer, bins))) + 1
    except VlaError as error:
        return str(error)
    return f'an answer of {tokens} tokens, and model.max_targets is {config.max_targets}' * (
        tokens > config.max_targets
    )


_SILENCE = {
    'target_T': np.zeros(0, np.int64),
    **{name: np.zeros(0, bool) for name in ('target_mask_T', 'loss_mask_T', 'action_token_T')},
}


def _acts(row: Mapping[str, np.ndarray]) -> bool:
    return bool(row['action_mask_HA'].any())


def _with_targets(batch: Batch, least: int = 2) -> Batch:
    """At least two columns of targets, if only padding: without any, the model takes another path.

    Several processes must take the same one, or their collectives do not meet.
    """
    lack = least - batch.target_BT.shape[1]
    if lack <= 0:
        return batch
    names = ('target_BT', 'target_mask_BT', 'loss_mask_BT', 'action_token_BT')
    padded: dict[str, Any] = {name: torch.nn.functional.pad(getattr(batch, name), (0, lack)) for name in names}
    return replace(batch, **padded)


def requantised(text: str, bins: int) -> str:
    """Boxes of a file, in 1024 steps, in as many steps as the vocabulary has."""
    if bins == LOC_BINS:
        return text
    return LOC.sub(lambda match: f'<loc{int(match[1]) * bins // LOC_BINS:04d}>', text)


def middle_of_box(text: str) -> PlaceInView:
    """Where in the first view that is which the words of a file put in a box, `reach for the cup <loc...>` x 4."""
    steps = [int(step) for step in LOC.findall(text)]
    if len(steps) != 4:
        return None
    top, left, bottom, right = steps
    return (left + right) / 2 / LOC_BINS, (top + bottom) / 2 / LOC_BINS


def in_file_steps(text: str, bins: int) -> str:
    """Boxes as a vocabulary with so many steps has them, in the 1024 steps of files: `requantised` turns them back."""
    return LOC.sub(lambda match: f'<loc{int(match[1]) * LOC_BINS // bins:04d}>', text)


class Counts(NamedTuple):
    """How much of a batch each loss is the mean over: text tokens, action tokens, action entries, labelled examples."""

    text: float
    fast: float
    flow: float
    dense: float


def counts(batch: Batch, recipe: Recipe) -> Counts:
    """What of a batch a recipe takes its losses over."""
    acts_B = batch.has_actions_B
    wanted_B = (acts_B & (recipe.targets != 'none')) | (~acts_B & recipe.vlm_data)
    wanted_BT = batch.loss_mask_BT & (wanted_B[:, None] & recipe.token_loss)
    return Counts(
        float((wanted_BT & ~batch.fast_BT).sum()),
        float((wanted_BT & batch.fast_BT).sum()),
        float(batch.action_mask_BHA.sum()) if recipe.action_loss else 0.0,
        float(labelled(batch, recipe.token_loss).sum()) if recipe.sees else 0.0,
    )


def mixed(seed: int, number: int) -> int:
    """One 63-bit seed of two numbers, well mixed, so that neighbours share nothing."""
    state = np.random.SeedSequence([seed, 5, number + 1]).generate_state(2, np.uint32)
    return int(state[0]) | (int(state[1]) & 0x7FFFFFFF) << 32
