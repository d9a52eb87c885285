"""How the learning rate goes, how weights are averaged, and which of them decay."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from training.train.config import Stage
from training.train.distributed import local
from training.train.muon import MuonAdamW


def rate_at(step: int, stage: Stage) -> float:
    """Factor on the peak rate at a step (from 0): linear up, then half a cosine down to `final_rate`."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    share = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return stage.final_rate + (1.0 - stage.final_rate) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, share)))


def make_optimiser(model: nn.Module, stage: Stage) -> torch.optim.AdamW:
    """One optimiser over every parameter: what a recipe does not train has no gradient and is left alone.

    Matrices decay, vectors (norms, biases) do not; the expert has a rate of its own. Each group keeps its `peak`. With
    `Stage.optimiser` muon the matrices of layers take its steps.
    """
    muon = stage.optimiser == 'muon'
    groups: dict[tuple[bool, bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        of_layer = muon and '.layers.' in name and parameter.ndim == 2
        groups.setdefault((of_layer, parameter.ndim > 1, name.startswith('expert.')), []).append(parameter)
    rows: list[dict[str, Any]] = [
        {
            'params': parameters,
            'weight_decay': stage.weight_decay if decays else 0.0,
            'peak': stage.rate * (stage.expert_rate if expert else 1.0),
            **({'muon': True} if of_layer else {}),
        }
        for (of_layer, decays, expert), parameters in groups.items()
    ]
    made = MuonAdamW if muon else torch.optim.AdamW
    return made(rows, lr=stage.rate, betas=(0.9, stage.beta2), eps=1e-8, fused=True)


def step_where(optimiser: torch.optim.Optimizer, finite: Tensor) -> None:
    """One step if `finite` (a bool on the device) is true, else none; the host does not wait to know.

    `found_inf` is how torch's gradient scaler tells a fused optimiser the same.
    """
    optimiser.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimiser.step()


def set_rate(optimiser: torch.optim.Optimizer, step: int, stage: Stage) -> float:
    """Sets the rate of every group for a step; returns the factor."""
    factor = rate_at(step, stage)
    for group in optimiser.param_groups:
        group['lr'] = group['peak'] * factor
    return factor


class Averaged:
    """An exponential moving average of the weights, in float32, on their device or on the CPU.

    It warms up: after n updates the decay is at most (1 + n) / (10 + n), so that short runs are not averaged with
    their random start.

    Args:
        model: whose weights.
        decay: of a step.
        on_cpu: keep the average there: a copy of the weights less on the GPU, and all of them across the bus at
            every update, for which the host waits.
        every: steps between two updates, which decay for all of them.
    """

    def __init__(self, model: nn.Module, decay: float, on_cpu: bool = False, every: int = 1) -> None:
        self.decay, self.updates, self.every, self._steps = decay**every, 0, every, 0
        self.weights = {
            name: parameter.detach().to('cpu' if on_cpu else parameter.device, copy=True)
            for name, parameter in model.named_parameters()
        }

    def after_step(self, model: nn.Module) -> None:
        """To be called after each step of the optimiser; updates when it is time.

        A step that was skipped has left the weights as they were; the average then takes them in once more.
        """
        self._steps += 1
        if self._steps % self.every == 0:
            self.update(model)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """One step of the average; weights that are not trained keep their place."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        mine, theirs = [], []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                mine.append(local(self.weights[name]))
                theirs.append(local(parameter.detach()).to(mine[-1].device))
        torch._foreach_lerp_(mine, theirs, 1.0 - decay)

    @torch.no_grad()
    def exchange(self, model: nn.Module) -> None:
        """Swaps the model's weights with the averaged ones; a second call swaps back."""
        for name, parameter in model.named_parameters():
            mine, theirs = local(self.weights[name]), local(parameter.detach())
            held = mine.clone()
            mine.copy_(theirs)
            theirs.copy_(held)
