"""What a policy has learned, measured on data it has not seen: losses, actions, language, knowledge.

Open loop only. Whether the robot does it is measured in closed loop (`ki eval sim`, `ki replay`).

Legend: B batch, H horizon, N action columns of the robot, T target tokens, R draws.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ki_vla.model.kivla import KiVla, Prefix
from ki_vla.objective.recipes import RECIPES, Recipe
from ki_vla.policy.bundle import Bundle, load_bundle
from ki_vla.policy.generation import generate
from ki_vla.policy.processor import Processor
from ki_vla.policy.subtasks import generate_subtasks
from ki_vla.tokens.loc import read_boxes
from training.errors import TrainingError
from training.samples.collator import Collator, Packet, in_file_steps
from training.samples.dataset import EpisodeDataset, Sample
from training.samples.mixture import Draw
from training.samples.vlm_data import VlmDataset, VlmSample
from training.train.distributed import usable_device
from training.train.run import BUNDLE, spread

ANSWER = 48  # tokens of an answer, at most
IOU = 0.5  # a box that overlaps the true one by half is right


@dataclass(frozen=True)
class HeldOutSettings:
    """How much is looked at, and on which device: cpu, cuda or auto."""

    samples: int = 128
    questions: int = 400
    batch: int = 16
    steps: int = 10
    seed: int = 0
    device: str = 'cpu'

    def __post_init__(self) -> None:
        """Refuse a device that is not there before recordings are opened, which may take long."""
        object.__setattr__(self, 'device', usable_device(self.device))


def open_policy(path: str | Path) -> Bundle:
    """A bundle, or the bundle of a run.

    Raises:
        TrainingError: there is none.
        VlaError: it is damaged.
    """
    path = Path(path)
    for place in (path, path / BUNDLE):
        if (place / 'manifest.json').is_file():
            return load_bundle(place)
    raise TrainingError(f'{path} holds no bundle; a run writes one when its last stage is done: call `ki train` again.')


def evaluate(
    bundle: Bundle,
    data: EpisodeDataset | None,
    words: VlmDataset | None = None,
    settings: HeldOutSettings | None = None,
) -> dict[str, Any]:
    """Everything that can be measured, as plain data.

    Args:
        bundle: the policy.
        data: episodes; their robot must be the bundle's.
        words: questions about pictures; kinds are told apart.
        settings: how much.

    Raises:
        VlaError: the data are of another robot.
    """
    settings = settings or HeldOutSettings()
    report: dict[str, Any] = {'policy': bundle.policy_id}
    model = bundle.model(settings.device, torch.float32).eval()
    if data is not None:
        bundle.check(data.contract)
        report |= actions_report(model, bundle.processor, data, _recipe(bundle), settings)
    if words is not None:
        report['questions'] = questions_report(model, bundle.processor, words, settings)
    return report


@torch.no_grad()
def actions_report(
    model: KiVla, processor: Processor, data: EpisodeDataset, recipe: Recipe, settings: HeldOutSettings
) -> dict[str, Any]:
    """Losses, token accuracy, the error of sampled chunks by step and column, and what the instruction changes."""
    drawn = spread('held', data, settings.samples)
    draws = 1 if recipe.targets_see_actions else 4
    collator = Collator(processor, settings.seed, draws)
    sums: defaultdict[str, float] = defaultdict(float)
    errors, unit_errors, unit_holds, masks = [], [], [], []
    for rows in _batches(drawn, settings.batch):
        rows = _with_own_subtasks(model, processor, rows)
        packet = collator(rows).to(settings.device)
        found = model(packet.batch, recipe, draws, packet.noise_BRHA, packet.tau_BR)
        told = found.report()
        for name, count in (('text', found.text_count), ('fast', found.fast_count), ('flow', found.action_count)):
            sums[name] += told[name] * float(count)
            sums[f'{name} count'] += float(count)
        prefix = _prefill(model, packet, hidden=recipe.token_loss)
        if recipe.token_loss:
            _token_hits(model, prefix, packet, sums)
        if recipe.action_loss:
            samples = [row.sample for row in rows]
            chunks = _chunks(model, processor, prefix, packet.noise_BRHA[:, 0], samples, settings.steps, recipe)
            for chunk, sample in zip(chunks, samples, strict=True):
                errors.append(chunk - sample.actions_HN)
                wanted = processor.normalised_actions(sample.actions_HN, sample.state_S)
                unit_errors.append(processor.normalised_actions(chunk, sample.state_S) - wanted)
                hold = _hold(processor, sample)
                unit_holds.append(processor.normalised_actions(hold, sample.state_S) - wanted)
            masks += [sample.action_mask_H for sample in samples]
    report: dict[str, Any] = {
        'samples': len(drawn),
        'episodes': len(data.episode_numbers),
        'losses': {name: sums[name] / sums[f'{name} count'] for name in ('text', 'fast', 'flow') if sums[name]},
        'token_accuracy': {
            name: sums[f'{name} hits'] / sums[f'{name} tries'] for name in ('text', 'fast') if sums[f'{name} tries']
        },
    }
    if errors:
        report['actions'] = _errors(processor, errors, unit_errors, unit_holds, masks)
        report['language'] = language_report(model, processor, data, drawn, recipe, settings)
    return report


@torch.no_grad()
def language_report(
    model: KiVla,
    processor: Processor,
    data: EpisodeDataset,
    drawn: Sequence[Draw],
    recipe: Recipe,
    settings: HeldOutSettings,
) -> dict[str, Any]:
    """Does the policy listen? The same picture and noise with the right and with another instruction of the data.

    `loss_right`, `loss_swapped`: action loss; a policy that ignores language has equal ones. `moved`: how far the
    sampled chunk moves when the instruction is swapped, in units of how far it moves when the noise is.
    """
    texts = sorted({draw.sample.instruction for draw in drawn})
    if len(texts) < 2 or recipe.loss != 'flow':
        return {'instructions': len(texts)}
    collator = Collator(processor, settings.seed, draws=8)
    right: list[float] = []
    swapped: list[float] = []
    moved: list[float] = []
    shaken: list[float] = []
    for rows in _batches(drawn, settings.batch):
        other = [
            replace(draw, sample=replace(draw.sample, instruction=_other(texts, draw.sample.instruction)))
            for draw in rows
        ]
        found = []
        for given in (rows, other):
            packet = collator(_with_own_subtasks(model, processor, given)).to(settings.device)
            prefix = _prefill(model, packet)
            found.append((_flow_losses(model, prefix, packet), packet, prefix))
        right += found[0][0]
        swapped += found[1][0]
        noise = found[0][1].noise_BRHA
        mask_BH1 = found[0][1].batch.action_mask_BHA.any(-1, keepdim=True)
        base = model.denoise(found[0][2], noise[:, 0], settings.steps)
        for prefix, draw, into in ((found[1][2], 0, moved), (found[0][2], 1, shaken)):
            there = model.denoise(prefix, noise[:, draw], settings.steps)
            squares = ((there - base).square() * mask_BH1).flatten(1).sum(1) / mask_BH1.flatten(1).sum(1).clamp(min=1)
            into += squares.sqrt().tolist()
    better = 0.5 + 0.5 * np.sign(np.asarray(swapped) - np.asarray(right))
    return {
        'instructions': len(texts),
        'loss_right': float(np.mean(right)),
        'loss_swapped': float(np.mean(swapped)),
        'right_is_better': float(better.mean()),
        'moved': float(np.mean(moved) / max(float(np.mean(shaken)), 1e-9)),
    }


@torch.no_grad()
def questions_report(
    model: KiVla, processor: Processor, words: VlmDataset, settings: HeldOutSettings
) -> dict[str, Any]:
    """Answers of the policy to questions about pictures, by kind: the share that is right word for word.

    Boxes are right when they overlap the true one by half; captions are only counted, as there are many right ones.
    """
    drawn = spread('words', words, settings.questions)
    collator = Collator(processor, settings.seed)
    right: defaultdict[str, int] = defaultdict(int)
    asked: defaultdict[str, int] = defaultdict(int)
    shown: list[dict[str, str]] = []
    for rows in _batches(drawn, settings.batch):
        packet = collator(rows).to(settings.device)
        prefix = _prefill(model, packet, hidden=True)
        vocabulary = processor.tokenizer.vocabulary
        out = generate(model, prefix, ANSWER, [vocabulary.eos])
        for row, ids_T, mask_T, answer in zip(rows, out.ids, out.mask, packet.answers, strict=True):
            sample: VlmSample = row.sample
            said = _said(processor, ids_T[mask_T].tolist())
            asked[sample.kind] += 1
            right[sample.kind] += _is_right(said, answer, vocabulary.loc_bins)
            if len(shown) < 12:
                shown.append({'question': sample.question, 'answer': answer, 'said': said})
    kinds = {kind: {'right': right[kind], 'asked': n, 'rate': right[kind] / n} for kind, n in sorted(asked.items())}
    tested = {kind: row for kind, row in kinds.items() if kind != 'caption'}
    total = sum(row['asked'] for row in tested.values())
    rate = sum(row['right'] for row in tested.values()) / total if total else None
    return {'accuracy': rate, 'asked': total, 'kinds': kinds, 'examples': shown}


def draw_report(report: dict[str, Any], path: Path) -> Path | None:
    """The report as a picture; None without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    panels = [name for name in ('actions', 'columns', 'questions') if name in report or name == 'columns']
    panels = [name for name in panels if name != 'columns' or 'actions' in report]
    figure = Figure(figsize=(4.6 * max(1, len(panels)), 3.4), layout='constrained')
    FigureCanvasAgg(figure)
    for place, name in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), place + 1)
        if name == 'actions':
            axes.plot(report['actions']['by_step'], label='policy')
            axes.plot(report['actions']['hold_by_step'], '--', label='stays where it is')
            axes.set(title='error by step ahead', xlabel='step', ylabel='rms, normalised', ylim=(0, None))
            axes.legend(frameon=False)
        elif name == 'columns':
            rows = list(report['actions']['by_column_si'].items())
            axes.barh([row[0].rpartition('/')[0] or row[0] for row in rows], [row[1] for row in rows])
            axes.tick_params(labelsize=6)
            axes.set(title='error by column', xlabel='rms, SI')
        else:
            kinds = report['questions']['kinds']
            axes.barh(list(kinds), [row['rate'] for row in kinds.values()])
            axes.set(title='answers that are right', xlim=(0, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


# Details --------------------------------------------------------------------------------------------------------------


def _recipe(bundle: Bundle) -> Recipe:
    name = str(bundle.recipe.get('name', 'ours'))
    return RECIPES.get(name, RECIPES['ours']).at(1.0)


def _batches(drawn: Sequence[Draw], size: int) -> Iterator[Sequence[Draw]]:
    for first in range(0, len(drawn), size):
        yield drawn[first : first + size]


def _prefill(model: KiVla, packet: Packet, hidden: bool = False) -> Prefix:
    b = packet.batch
    return model.prefill(b.images_BVCHW, b.image_mask_BV, b.prompt_BL, b.prompt_mask_BL, b.state_BS, hidden)


def _with_own_subtasks(model: KiVla, processor: Processor, rows: Sequence[Draw]) -> list[Draw]:
    """Moments with what a policy of two levels says itself, as it acts on the robot, in place of what was recorded."""
    if not processor.processing.subtasks:
        return list(rows)
    moments = [(row.sample.images, row.sample.state_S, row.sample.instruction) for row in rows]
    said = generate_subtasks(model, processor, [processor.inputs(*moment, asks='Subtask') for moment in moments])
    bins = processor.tokenizer.vocabulary.loc_bins
    texts = [in_file_steps(text, bins) for text in said]
    return [replace(row, sample=replace(row.sample, subtask=text)) for row, text in zip(rows, texts, strict=True)]


def _token_hits(model: KiVla, prefix: Prefix, packet: Packet, sums: defaultdict[str, float]) -> None:
    """Counts the target tokens that are the most likely ones, given all tokens before them."""
    batch = packet.batch
    if not batch.target_BT.shape[1]:
        return
    hidden_BTD = model.token_hidden(prefix, batch.target_BT, batch.target_mask_BT)
    wanted_BT = batch.loss_mask_BT
    hits_P = model.logits(hidden_BTD[wanted_BT]).argmax(-1) == batch.target_BT[wanted_BT]
    fast_P = batch.fast_BT[wanted_BT]
    for name, chosen_P in (('fast', fast_P), ('text', ~fast_P)):
        sums[f'{name} hits'] += float(hits_P[chosen_P].sum())
        sums[f'{name} tries'] += float(chosen_P.sum())


def _chunks(
    model: KiVla,
    processor: Processor,
    prefix: Prefix,
    noise_BHA: Tensor,
    samples: Sequence[Sample],
    steps: int,
    recipe: Recipe,
) -> list[NDArray[np.float64]]:
    """Sampled chunks, absolute SI [H, N] each."""
    if recipe.loss == 'l1':
        model_BHA = model.parallel_actions(prefix)
    else:
        model_BHA = model.denoise(prefix, noise_BHA, steps)
    rows = model_BHA.double().cpu().numpy()
    return [processor.actions(row, sample.state_S) for row, sample in zip(rows, samples, strict=True)]


def _hold(processor: Processor, sample: Sample) -> NDArray[np.float64]:
    """The chunk of a robot that does nothing: measured values where a column has one, else 0."""
    contract = processor.contract
    state = dict(zip(contract.state_names, sample.state_S, strict=True))
    moving = ('velocity', 'effort')
    row = [0.0 if name.endswith(moving) else float(state.get(name, 0.0)) for name in contract.action_names]
    return np.tile(np.asarray(row), (len(sample.actions_HN), 1))


def _errors(
    processor: Processor,
    errors: Sequence[NDArray[Any]],
    unit_errors: Sequence[NDArray[Any]],
    unit_holds: Sequence[NDArray[Any]],
    masks: Sequence[NDArray[np.bool_]],
) -> dict[str, Any]:
    """Root mean squares over real steps: by step in normalised units, by column in SI."""
    errors_SHN = np.stack(errors)
    weights_SH1 = np.stack(masks)[..., None].astype(np.float64)
    count_H = np.maximum(weights_SH1.sum(axis=(0, 2)), 1.0)

    def by_step(each: Sequence[NDArray[Any]]) -> list[float]:
        squares_SHN = np.square(np.stack(each)) * weights_SH1
        return [float(value) for value in np.sqrt(squares_SHN.mean(axis=2).sum(axis=0) / count_H)]

    by_column = np.sqrt((np.square(errors_SHN) * weights_SH1).sum(axis=(0, 1)) / max(weights_SH1.sum(), 1.0))
    steps, holds = by_step(unit_errors), by_step(unit_holds)
    return {
        'rms': float(np.sqrt(np.average(np.square(steps), weights=count_H))),
        'hold_rms': float(np.sqrt(np.average(np.square(holds), weights=count_H))),
        'by_step': steps,
        'hold_by_step': holds,
        'by_column_si': dict(zip(processor.contract.action_names, by_column.tolist(), strict=True)),
    }


def _flow_losses(model: KiVla, prefix: Prefix, packet: Packet) -> list[float]:
    """The flow loss of each sample."""
    from ki_vla.model import flow

    actions_B1HA, mask_B1HA = packet.batch.actions_BHA[:, None], packet.batch.action_mask_BHA[:, None]
    noisy = flow.noised(actions_B1HA, packet.noise_BRHA, packet.tau_BR[..., None])
    error = model.field(prefix, noisy, packet.tau_BR) - flow.target(actions_B1HA, packet.noise_BRHA)
    total_B = (error.float().square() * mask_B1HA).flatten(1).sum(1)
    return (total_B / (mask_B1HA.flatten(1).sum(1) * packet.tau_BR.shape[1]).clamp(min=1)).tolist()


def _other(texts: Sequence[str], text: str) -> str:
    return texts[(texts.index(text) + 1) % len(texts)]


def _said(processor: Processor, ids: list[int]) -> str:
    """The text of an answer; what is no text is shown as its id."""
    words, run = [], []
    known = processor.tokenizer.tokenizer.get_vocab_size()
    for token in ids:
        if token < known:
            run.append(token)
        else:
            words += [processor.tokenizer.decode(run), f'<{token}>']
            run = []
    return ''.join([*words, processor.tokenizer.decode(run)]).strip()


def _is_right(said: str, answer: str, bins: int) -> bool:
    if '<loc' not in answer:
        return said == answer.strip()
    wanted, found = read_boxes(answer, bins), read_boxes(said, bins)
    return len(found) == len(wanted) and all(_overlap(a, b) >= IOU for a, b in zip(found, wanted, strict=True))


def _overlap(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Intersection over union of two boxes y0 x0 y1 x1."""
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    inside = float(np.prod(np.maximum(high - low, 0.0)))
    areas = [float(np.prod(np.maximum(box[2:] - box[:2], 0.0))) for box in (a, b)]
    return inside / max(sum(areas) - inside, 1e-9)
