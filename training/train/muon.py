"""Muon for the matrices of layers, AdamW for everything else, as one optimiser.

Muon (Jordan et al. 2024; at scale arXiv 2502.16982) steps along the nearest orthogonal matrix to the momentum of a
gradient: all directions of a matrix move alike, where AdamW moves most along the few that its gradients agree on.
torch.optim.Muon takes one matrix after the other, none of them sharded, and waits for the device to skip a step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from training.train.distributed import local, part_of, whole

MOMENTUM = 0.95
# Newton-Schulz: an odd polynomial that takes singular values from (0, 1] to about 1 within these rounds.
ROUNDS, LINEAR, CUBIC, QUINTIC = 5, 3.4445, -4.7750, 2.0315
RMS = 0.2  # of a step at rate 1: about that of AdamW, so that one rate serves both (arXiv 2502.16982, section 2.2)
TINY = 1e-7
WHOLE = 2**24  # numbers of sharded matrices that a process puts together at once, if they are not of one matrix


class MuonAdamW(torch.optim.AdamW):
    """AdamW whose groups with `muon: True` take Muon's steps; these hold matrices only.

    The momentum is sharded as the weights are; a few matrices at a time are put together for their step.
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
        for moved in _some_at_a_time([each for each in group['params'] if each.grad is not None]):
            self._step_together(moved, group['lr'], group['weight_decay'])

    def _step_together(self, moved: Sequence[Tensor], rate: float, decay: float) -> None:
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
            weight = local(parameter)
            step = RMS * max(direction.shape) ** 0.5 * part_of(direction, parameter) + decay * weight
            weight.sub_(rate * (step if bad is None else torch.where(bad > 0, 0.0, step)))


def _some_at_a_time(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of parameters of `WHOLE` numbers at most, or of one parameter."""
    together: list[Tensor] = []
    for parameter in parameters:
        if together and sum(each.numel() for each in together) + parameter.numel() > WHOLE:
            yield together
            together = []
        together.append(parameter)
    if together:
        yield together


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
