"""Muon for the matrices of layers, AdamW for everything else, as one optimiser.

Muon (Jordan et al. 2024; at scale arXiv 2502.16982) steps along the nearest orthogonal matrix to the momentum of a
gradient: all directions of a matrix move alike, where AdamW moves most along the few that its gradients agree on.
torch.optim.Muon takes one matrix after the other, none of them sharded, and waits for the device to skip a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from training.train.distributed import local, part_of, whole

MOMENTUM = 0.95
# Newton-Schulz: an odd polynomial that takes singular values from (0, 1] to about 1 within these rounds.
ROUNDS, LINEAR, CUBIC, QUINTIC = 5, 3.4445, -4.7750, 2.0315
RMS = 0.2  # of a step at rate 1: about that of AdamW, so that one rate serves both (arXiv 2502.16982, section 2.2)
TINY = 1e-7


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `muon: True` take Muon's steps; these hold matrices only.

    The momentum is sharded as the weights are; one matrix after the other is put together for its step.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **adamw: Any) -> None:
        super().__init__([{'muon': False, **group} for group in groups], **adamw)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step; none where `found_inf` says so, and the host does not wait to know."""
        groups = self.param_groups
        for group in groups:
            if group['muon']:
                self._muon_step(group)
        self.param_groups = [group for group in groups if not group['muon']]
        try:
            super().step(closure)
        finally:
            self.param_groups = groups

    def _muon_step(self, group: dict[str, Any]) -> None:
        moved = [parameter for parameter in group['params'] if parameter.grad is not None]
        bad = getattr(self, 'found_inf', None)
        wanted = []
        for parameter in moved:
            state, gradient = self.state[parameter], parameter.grad
            assert gradient is not None
            if not state:
                state['step'] = torch.zeros((), device=parameter.device)  # AdamW asks for it when it is loaded
                state['momentum'] = torch.zeros_like(parameter)
            momentum = state['momentum']
            ours, theirs = local(momentum), local(gradient)
            if bad is not None:
                theirs = torch.where(bad > 0, ours, theirs)  # the momentum stays
            ours.lerp_(theirs, 1.0 - MOMENTUM)
            state['step'] += 1 if bad is None else 1 - bad
            wanted.append(whole(gradient.lerp(momentum, MOMENTUM)))
        for parameter, direction in zip(moved, orthogonal(wanted), strict=True):
            rate = group['lr'] if bad is None else torch.where(bad > 0, 0.0, group['lr'])
            step = RMS * max(direction.shape) ** 0.5 * part_of(direction, parameter)
            weight = local(parameter)
            if bad is not None:
                step = torch.where(bad > 0, 0.0, step)
            weight.sub_(rate * (step + group['weight_decay'] * weight))


def orthogonal(matrices: Sequence[Tensor]) -> list[Tensor]:
    """For each matrix about the nearest with singular values of 1; those of one shape are computed together."""
    lying = [m.mT if m.shape[0] > m.shape[1] else m for m in matrices]
    shapes: dict[torch.Size, list[int]] = {}
    for index, matrix in enumerate(lying):
        shapes.setdefault(matrix.shape, []).append(index)
    found = list(lying)
    for indices in shapes.values():
        x = torch.stack([lying[index] for index in indices]).float()
        x = x / (torch.linalg.matrix_norm(x, keepdim=True) + TINY)
        for _ in range(ROUNDS):
            square = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=CUBIC, alpha=QUINTIC), x, beta=LINEAR)
        for index, each in zip(indices, x.unbind(), strict=True):
            found[index] = each
    return [o.mT if m.shape[0] > m.shape[1] else o for m, o in zip(matrices, found, strict=True)]
