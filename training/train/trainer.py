"""The training loop of one stage, from its first weights to its last checkpoint; it can be interrupted at any step.

A step is a function of the configuration, the weights and the number of its draws. Losses are means over the whole
step, whatever it is cut into: each micro-batch on each process counts as much as the tokens and action entries that it
holds, so accumulation and several processes give the gradient of one large batch.

On a GPU the host runs ahead: nothing in a step waits for the device. What a step found stays there as a row of numbers,
and the rows are fetched together every `log_every` steps (`Trainer.settle`). On a CPU, where nothing waits, after each.
"""

from __future__ import annotations

import contextlib
import copy
import math
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ki_vla.model import flow
from ki_vla.model.kivla import KiVla
from ki_vla.objective.losses import Losses
from ki_vla.objective.recipes import Recipe
from ki_vla.objective.trainable import prepare
from ki_vla.policy.processor import Processor
from training.errors import TrainingError
from training.samples.collator import Collator, Counts, Packet, counts
from training.samples.mixture import Loader, Mixture, Part, Sampler
from training.train.checkpoint import Checkpoint, check_fingerprint, checkpoints, read_checkpoint, write_checkpoint
from training.train.config import Run, Stage
from training.train.distributed import (
    ProcessGroup,
    average_gradients,
    load_optimiser,
    load_weights,
    on_device,
    shard,
    summed,
    totals,
    wait_for_all,
    whole,
    whole_optimiser,
    whole_weights,
)
from training.train.kept import KeptSamples, prefixed, sent
from training.train.lora import add_lora, freeze_base
from training.train.resume_fingerprint import resume_fingerprint
from training.train.run_report import LOSSES, Journal
from training.train.schedule import Averaged, make_optimiser, set_rate, step_where

Tell = Callable[[str, dict[str, Any]], None]


@dataclass(frozen=True)
class Pending:
    """What a step found, still on the device.

    Attributes:
        step: its number, from 1.
        draws: the first and the last draw in it.
        row: sum and count of each of `LOSSES`, then the trained loss, the norm of the gradient, and whether both are
            finite; float64.
    """

    step: int
    draws: tuple[int, int]
    row: Tensor


@dataclass
class Tally:
    """Sums of losses since the last report."""

    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LOSSES, 0.0))
    counts: dict[str, float] = field(default_factory=lambda: dict.fromkeys(LOSSES, 0.0))
    norm: float = 0.0
    steps: int = 0
    began: float = field(default_factory=time.perf_counter)
    waited: float = 0.0

    def means(self) -> dict[str, float]:
        """Mean of each loss that occurred."""
        return {name: self.sums[name] / self.counts[name] for name in LOSSES if self.counts[name]}


def weighted(found: Losses, stage: Stage, alpha: float, here: Counts, step: Counts) -> Tensor:
    """The loss that a micro-batch is trained on: its share of the means over the whole step, weighted.

    Args:
        found: its means.
        stage: with the weights.
        alpha: of the continuous actions, see `Recipe`.
        here: what its means are over.
        step: the same of the whole step, over all micro-batches and processes.
    """

    def share(count: float, total: float) -> float:
        # Not `if total`: with several processes it lies on the device.
        return count / total if count else 0.0

    loss = alpha * found.flow * share(here.flow, step.flow)
    loss = loss + stage.dense * found.dense * share(here.dense, step.dense)
    if stage.text_weight is None and stage.fast_weight is None:
        return loss + found.tokens * share(here.text + here.fast, step.text + step.fast)
    text = 1.0 if stage.text_weight is None else stage.text_weight
    fast = 1.0 if stage.fast_weight is None else stage.fast_weight
    return loss + text * found.text * share(here.text, step.text) + fast * found.fast * share(here.fast, step.fast)


class Trainer:
    """Trains one stage.

    Args:
        run, stage: the configuration.
        model: with the weights to start from; moved to its device and sharded here.
        processor: of the policy; `others` of the other robots that train it, by name.
        parts: sources of samples, weighted.
        held: packets of the validation split, always the same.
        folder: of the stage.
        world: this process among all.
        data_hash: what a checkpoint must agree with to be gone on from.
        tell: called with (`step` | `validation` | `saved` | `warning`, values).
    """

    def __init__(
        self,
        run: Run,
        stage: Stage,
        model: KiVla,
        processor: Processor,
        parts: Sequence[Part],
        held: Sequence[Packet],
        folder: Path,
        world: ProcessGroup,
        data_hash: str = '',
        tell: Tell | None = None,
        others: Mapping[str, Processor] | None = None,
    ) -> None:
        self.run, self.stage, self.model, self.world = run, stage, model, world
        self.recipe: Recipe = stage.trains
        if stage.sight and (model.dense is None or not self.recipe.sees):
            lacks = (
                'labels to learn; write model.dense.labels' if model.dense is None else 'a recipe that trains the eyes'
            )
            raise TrainingError(f'stage {stage.name}: sight needs {lacks}, or leave sight out.')
        self.held, self.folder = list(held), folder
        self.tell = tell or (lambda kind, values: None)
        self.bf16 = (world.device.type == 'cuda') if run.bf16 is None else run.bf16
        self.step, self.skipped, self.skips_in_a_row = 0, 0, 0
        self.runs_ahead = world.device.type != 'cpu'
        self._pending: list[Pending] = []
        self.asked, self.stop = False, False  # asked here, agreed by all processes
        share = world.size * stage.accumulate
        if stage.batch % share:
            raise TrainingError(
                f'stage {stage.name}: batch {stage.batch} cannot be shared by {world.size} processes x '
                f'{stage.accumulate} micro-batches; make it a multiple of {share}.'
            )
        self.fingerprint = resume_fingerprint(run, stage, processor, others or {}, parts, data_hash)
        collator = Collator(
            processor, run.seed, 1 if self.recipe.targets_see_actions else stage.draws, run.data.subtask, run.augment,
            pin=world.device.type == 'cuda', silent=self.recipe.targets == 'none' and not self.recipe.stages,
            others=others or {},
        )  # fmt: skip
        sampler = Sampler(Mixture(parts, run.seed), world.rank, world.size)
        self.loader = Loader(
            sampler, stage.batch // share, collator, run.workers, max(4, 2 * run.workers), run.loader_processes
        )
        model.checkpointing = run.checkpointing
        self.teacher = self._frozen_copy(model)
        if run.lora:
            # One FSDP group holds one dtype, so only a single process keeps the frozen matrices small.
            add_lora(model, run.lora, run.seed, small=self.bf16 and world.size == 1)
        shard(model, world, self.bf16)
        self._prepare(self.recipe)
        if run.compile:
            model.compile()
        self.optimiser = make_optimiser(model, stage)
        decay = run.decay(stage)
        self.average = Averaged(model, decay, run.ema_on == 'cpu', run.ema_every) if decay else None
        self.current = self.recipe.at(0.0)

    # The loop -----------------------------------------------------------------------------------------------------

    def fit(self) -> bool:
        """Trains to the last step; False when it was asked to stop before (the checkpoint is written then too).

        Raises:
            TrainingError: too many steps without a finite loss, or a last checkpoint that cannot be written.
        """
        self.resume()
        self.loader.steps = (self.stage.steps - self.step) * self.stage.accumulate
        journal = Journal(
            self.folder, self.step, not self.world.first, self.run, lambda text: self.tell('warning', {'text': text})
        )
        self.model.train()
        tally = Tally()
        if self.stage.kept:
            packets = self._kept_samples().after(self.step)
        else:
            packets = iter(self.loader)
        try:
            with self._stops_politely():
                while self.step < self.stage.steps and not self.stop:
                    micro = [next(packets) for _ in range(self.stage.accumulate)]
                    self.one_step(micro)
                    if self._is_due():
                        self.settle(tally)
                    self._report(journal, tally)
                    saved = self.step % self.run.save_every == 0 and self.step < self.stage.steps
                    if saved and not self.stop:
                        self._save_or_warn()
                self.save()
                if self.held and self.step % self.run.validate_every:
                    self._validate(journal)
        finally:
            packets.close()
            journal.close()
        return self.step >= self.stage.steps

    def _kept_samples(self) -> KeptSamples:
        """The first samples of the stage, also when it is resumed, with what the backbone makes of them."""
        self.loader.sampler.load_state_dict({**self.loader.sampler.state_dict(), 'position': 0})
        steps = math.ceil(self.stage.kept / self.stage.batch)
        self.loader.steps = steps * self.stage.accumulate
        self.tell('keeping', {'samples': steps * self.stage.batch})
        self.model.eval()
        with self._precision():
            made = [prefixed(self.model, packet, self.world.device) for packet in self.loader]
        self.model.train()
        kept = KeptSamples(made, self.run.seed, self.stage.accumulate)
        samples, size = totals(self.world, [kept.samples, kept.nbytes])
        self.tell('kept', {'samples': int(samples), 'bytes': int(size)})
        return kept

    def one_step(self, micro: list[Packet]) -> None:
        """One step on packets of the host. What it found waits to be fetched by `settle`."""
        self._enter_recipe()
        set_rate(self.optimiser, self.step, self.stage)
        local = [counts(packet.batch, self.current) for packet in micro]
        whole_step = self._totals(local)
        sums = torch.zeros(2 * len(LOSSES) + 1, dtype=torch.float64, device=self.world.device)
        for index, (packet, here) in enumerate(zip(micro, local, strict=True)):
            found = self._losses(packet, index)
            loss = weighted(found, self.stage, self.current.alpha, here, whole_step)
            if loss.requires_grad:
                (loss * self.world.size).backward()  # the mean over processes follows
            means = [(getattr(found, name).detach().double(), count) for name, count in here._asdict().items()]
            told = [each for mean, count in means for each in (mean * count, torch.full_like(mean, count))]
            sums += torch.stack([*told, loss.detach().double()])
        summed(self.world, sums)
        average_gradients(self.model, self.world)
        norm = torch.nn.utils.clip_grad_norm_(
            [p for p in self.model.parameters() if p.requires_grad], self.stage.clip, foreach=True
        )
        norm = whole(norm)
        finite = torch.isfinite(sums[-1]) & torch.isfinite(norm)
        step_where(self.optimiser, finite)
        if self.average is not None:
            self.average.after_step(self.model)
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1
        numbers = [number for packet in micro for number in packet.numbers]
        row = torch.cat([sums, torch.stack([norm.double(), finite.double()])])
        self._pending.append(Pending(self.step, (min(numbers, default=0), max(numbers, default=0)), row))

    def _totals(self, local: list[Counts]) -> Counts:
        """What the step's means are over, in all micro-batches and processes; with several, scalars on the device."""
        here = [sum(each) for each in zip(*local, strict=True)]
        if self.world.size == 1:
            return Counts(*here)
        everywhere: Any = summed(self.world, on_device(self.world, here)).float().unbind()
        return Counts(*everywhere)

    def settle(self, tally: Tally) -> None:
        """Fetches what the steps since the last time found, and agrees with the other processes on whether to stop.

        Raises:
            TrainingError: too many steps in a row were skipped.
        """
        self.stop = totals(self.world, [float(self.asked)])[0] > 0
        pending, self._pending = self._pending, []
        if not pending:
            return
        rows = torch.stack([each.row for each in pending]).tolist()  # the host waits here
        for each, row in zip(pending, rows, strict=True):
            tally.steps += 1
            *sums, _, norm, finite = row
            if not finite:
                self._skip(each)
                continue
            self.skips_in_a_row = 0
            for place, name in enumerate(LOSSES):
                tally.sums[name] += sums[2 * place]
                tally.counts[name] += sums[2 * place + 1]
            tally.norm += norm

    def _is_due(self) -> bool:
        """Whether the host needs to know what the steps found."""
        run = self.run
        often = (run.log_every, run.save_every, *([run.validate_every] if self.held else []))
        asked_alone = self.asked and self.world.size == 1
        last = self.step == self.stage.steps
        return not self.runs_ahead or asked_alone or last or any(self.step % each == 0 for each in often)

    def _losses(self, packet: Packet, index: int) -> Losses:
        tau, given = packet.tau_BR, None
        if self.stage.max_delay:  # of a settled run: a number
            # Delays are the one thing drawn here: by step, micro-batch and process; on the host, whose generator it is.
            mixed = ((self.run.seed * 1_000_003 + self.step) * 1_009 + index) * 1_013 + self.world.rank
            generator = torch.Generator().manual_seed(mixed % 2**63)
            config = self.model.config
            tau, given = flow.give_first_actions(
                tau, config.horizon, self.stage.max_delay, generator, config.steps_per_token
            )
        there = packet.to(self.world.device)
        tau, given = (self._sent(each) for each in (tau, given))
        with self._precision():
            found: Losses = self.model(
                there.batch, self.current, tau.shape[1], there.noise_BRHA, tau, given_BRH=given, teacher=self.teacher,
                prefix=None if packet.prefix is None else sent(packet.prefix, self.world.device),
            )  # fmt: skip
        return found

    def _sent(self, value: Tensor | None) -> Any:
        """A tensor of the host on the device, without waiting for it."""
        if value is None:
            return None
        value = value.pin_memory() if self.world.device.type == 'cuda' else value
        return value.to(self.world.device, non_blocking=True)

    def _precision(self) -> Any:
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.bf16)

    def _frozen_copy(self, model: KiVla) -> KiVla | None:
        """The model as the stage begins, for a recipe that keeps what it says near; on the device of this process."""
        if not self.recipe.consistency:
            return None
        teacher = copy.deepcopy(model).to(self.world.device).requires_grad_(False)
        return teacher.eval()

    def _prepare(self, wanted: Recipe) -> None:
        """Asks for gradients where the recipe and LoRA train."""
        prepare(self.model, wanted)
        if self.run.lora:
            freeze_base(self.model)

    def _enter_recipe(self) -> None:
        """A recipe in stages changes what is trained when its time has come."""
        wanted = self.recipe.at(self.step / self.stage.steps)
        if wanted != self.current or self.step == 0:
            self.current = wanted
            self._prepare(replace(wanted, stages=()))

    def _skip(self, found: Pending) -> None:
        self.skipped += 1
        self.skips_in_a_row += 1
        self.tell('warning', {'text': f'step {found.step} skipped: loss or gradient is not finite'})
        if self.skips_in_a_row >= self.run.max_skips:
            raise TrainingError(
                f'stage {self.stage.name}, step {found.step}: {self.skips_in_a_row} steps in a row gave no finite '
                f'loss or gradient (last draws {found.draws[0]}..{found.draws[1]}); lower stage.rate or look at the '
                'data with `ki doctor data`. The last checkpoint is from before.'
            )

    # Reports ------------------------------------------------------------------------------------------------------

    def _report(self, journal: Journal, tally: Tally) -> None:
        if self.step % self.run.log_every == 0 or self.step == self.stage.steps:
            now, waited = time.perf_counter(), self.loader.wait_s
            seconds = max(now - tally.began, 1e-9)
            values = {
                **tally.means(),
                'norm': tally.norm / max(tally.steps, 1),
                'rate': self.optimiser.param_groups[0]['lr'],
                'samples_per_s': tally.steps * self.stage.batch / seconds,
                'waiting': (waited - tally.waited) / seconds,
                'skipped': float(self.skipped),
            }
            journal.write(self.step, 'train', values)
            self.tell('step', {'step': self.step, **values})
            fresh = Tally(began=now, waited=waited)
            tally.__dict__.update(fresh.__dict__)
        if self.held and self.step % self.run.validate_every == 0:
            begun = time.perf_counter()
            self._validate(journal)
            tally.began += time.perf_counter() - begun  # of the steps alone

    def _validate(self, journal: Journal) -> None:
        values = self.validation()
        journal.write(self.step, 'validation', values)
        self.tell('validation', {'step': self.step, **values})

    @torch.no_grad()
    def validation(self) -> dict[str, float]:
        """Losses on the held-out packets, together and by task or kind; averaged weights where there are some."""
        sums: dict[str, float] = defaultdict(float)
        entries: dict[str, float] = defaultdict(float)
        with self._averaged():
            for packet in self.held:
                there = packet.to(self.world.device)
                with self._precision():
                    found = self.model(
                        there.batch,
                        self.current,
                        there.tau_BR.shape[1],
                        there.noise_BRHA,
                        there.tau_BR,
                        teacher=self.teacher,
                    )
                told = found.report()
                for name, weight in counts(packet.batch, self.current)._asdict().items():
                    for key in (name, f'{name}/{packet.group}') if packet.group else (name,):
                        sums[key] += told[name] * weight
                        entries[key] += weight
        return {key: total / entries[key] for key, total in sums.items() if entries[key]}

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        self.model.eval()
        if self.average is not None:
            self.average.exchange(self.model)
        try:
            yield
        finally:
            if self.average is not None:
                self.average.exchange(self.model)
            self.model.train()

    # Checkpoints --------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Path:
        """The folder of checkpoints."""
        return self.folder / 'checkpoints'

    def save(self) -> None:
        """Writes a checkpoint of this step.

        Raises:
            TrainingError: it cannot be written.
        """
        weights = whole_weights(self.model)
        optimiser = {'optimiser': whole_optimiser(self.model, self.optimiser), 'torch_rng': torch.get_rng_state()}
        average = None
        if self.average is not None:
            average = {name: whole(value).cpu() for name, value in self.average.weights.items()}
        failed = ''
        if self.world.first:
            state = {
                'identity': self.fingerprint,
                'sampler': self.loader.state_dict(),
                'skipped': self.skipped,
                'average_updates': 0 if self.average is None else self.average.updates,
            }
            try:
                made = Checkpoint(self.step, weights, average, optimiser, state)
                self.tell(
                    'saved', {'path': str(write_checkpoint(self.store, made, self.run.keep, self.run.keep_every))}
                )
            except TrainingError as error:
                failed = str(error)
        # Every process must know, or the others would wait for this one for ever.
        if totals(self.world, [float(bool(failed))])[0]:
            raise TrainingError(failed or 'the first process could not write its checkpoint; see its message.')

    def _save_or_warn(self) -> None:
        """A checkpoint on the way may fail: training goes on, and the next one may succeed."""
        try:
            self.save()
        except TrainingError as error:
            self.tell('warning', {'text': str(error)})

    def resume(self) -> None:
        """Goes on from the newest checkpoint, if there is one.

        Raises:
            TrainingError: it is damaged, or was written by another run.
        """
        found = checkpoints(self.store)
        if not found:
            return
        checkpoint = read_checkpoint(found[-1])
        check_fingerprint(found[-1], checkpoint.state, self.fingerprint)
        load_weights(self.model, checkpoint.weights)
        self.step = checkpoint.step
        self.current = self.recipe.at(min(self.step, self.stage.steps - 1) / self.stage.steps)
        self._prepare(replace(self.current, stages=()))
        load_optimiser(self.model, self.optimiser, checkpoint.optimiser['optimiser'])
        torch.set_rng_state(checkpoint.optimiser['torch_rng'])
        if self.average is not None and checkpoint.average is not None:
            self._load_average(checkpoint)
        self.loader.sampler.load_state_dict(checkpoint.state['sampler'])
        self.skipped = checkpoint.state['skipped']
        wait_for_all(self.world)

    def _load_average(self, checkpoint: Checkpoint) -> None:
        """Through the model, whose weights know how they are sharded."""
        assert self.average is not None
        assert checkpoint.average is not None
        self.average.exchange(self.model)
        load_weights(self.model, checkpoint.average)
        self.average.exchange(self.model)
        self.average.updates = checkpoint.state['average_updates']

    @contextlib.contextmanager
    def _stops_politely(self) -> Iterator[None]:
        """SIGTERM and the first SIGINT end the run after the step in hand, with a checkpoint."""

        def asked(number: int, frame: Any) -> None:
            if self.asked and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.asked = True

        try:
            before = {each: signal.signal(each, asked) for each in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: whoever runs it handles signals
            before = {}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)
