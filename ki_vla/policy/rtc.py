"""Real-time chunking: a new chunk that continues the part of the old one which is executed while it is computed.

*Guided* (arXiv 2506.07339) needs no training: each Euler step corrects the field towards the old chunk by the network's
vector-Jacobian product, with full weight for the first `delay` steps and falling weight up to `end`. *Trained*
(arXiv 2512.05964) needs a model trained with `max_delay`: the first `delay` actions are given, at a time of their own,
tau = 1.

The old chunk is passed as `previous`, normalised like the model's actions, its first row being the new chunk's first
step. Rows beyond its end are padding and have no weight: nothing beyond `end` is read.

Shape legend: B batch, H horizon, P rows left of the old chunk (P <= H), A action dims.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ki_vla.errors import VlaError
from ki_vla.model import flow
from ki_vla.model.flow import Field

SCHEDULES = ('exp', 'linear', 'ones', 'zeros')
G_MAX = 5.0


def prefix_weights(
    horizon: int, delay: int | Tensor, end: int | Tensor, schedule: str = 'exp', device: torch.device | None = None
) -> Tensor:
    """How much each step of the new chunk should agree with the old one, float32 [H] (or [B, H] for tensors [B]).

    Args:
        horizon: H.
        delay: steps that are executed before the new chunk can start; these have weight 1.
        end: first step without weight, H - s when s steps of the old chunk have been executed.
        schedule: what lies between: 'linear' falls evenly, 'exp' faster, 'ones' stays, 'zeros' drops at once.
        device: where, when `delay` is a number.

    Raises:
        VlaError: unknown schedule, or numbers that do not satisfy 0 <= delay <= end <= horizon.
    """
    if schedule not in SCHEDULES:
        raise VlaError(f'schedule: {schedule!r} is unknown; choose one of {", ".join(SCHEDULES)}.')
    if isinstance(delay, int) and isinstance(end, int) and not 0 <= delay <= end <= horizon:
        raise VlaError(f'delay {delay} and end {end} must satisfy 0 <= delay <= end <= horizon = {horizon}.')
    start, stop = (torch.as_tensor(x, device=getattr(x, 'device', device))[..., None] for x in (delay, end))
    index = torch.arange(horizon, device=start.device)
    if schedule == 'ones':
        weights = torch.ones_like(index, dtype=torch.float32).expand(torch.broadcast_shapes(start.shape, index.shape))
    elif schedule == 'zeros':
        weights = (index < start).float()
    else:
        weights = ((start - 1 - index) / (stop - start + 1) + 1).clamp(0.0, 1.0)
        if schedule == 'exp':
            weights = weights * torch.expm1(weights) / (math.e - 1.0)
    return torch.where(index < stop, weights, 0.0)


def guidance_strength(tau: Tensor, g_max: float = G_MAX) -> Tensor:
    """The factor of the correction at tau, at most `g_max` (reached at tau = 0, where the formula is infinite)."""
    left = 1.0 - tau
    strength = (left / tau) * (tau.square() + left.square()) / left.square()
    return torch.nan_to_num(strength, nan=g_max, posinf=g_max).clamp(max=g_max)


def guided_field(
    field: Callable[[Tensor], Tensor],
    noisy: Tensor,
    tau: Tensor,
    strength: Tensor,
    previous: Tensor,
    weights: Tensor,
) -> Tensor:
    """The field at one point, pulled towards the old chunk (arXiv 2506.07339, equation 2 and algorithm 1).

    With the clean estimate x1(x) = x - (1 - tau) f(x), the correction is  J^T [(previous - x1) * weights]  with
    J = dx1/dx, all of it and not the identity in its place. The network's inputs must allow gradients (no
    `torch.inference_mode`).

    Args:
        field: noisy actions -> field at this tau.
        noisy: [..., H, A].
        tau: [..., 1].
        strength: of `guidance_strength`, broadcast over actions.
        previous: the old chunk at full length, like `noisy`.
        weights: of `prefix_weights`, [..., H].
    """
    with torch.enable_grad():
        point = noisy.detach().requires_grad_()
        value = field(point)
        estimate = flow.clean_estimate(point, value, tau)
        error = (previous - estimate.detach()) * weights[..., None]
        (correction,) = torch.autograd.grad(estimate, point, error)
    return value.detach() - strength * correction


def guide(field: Field, previous_BHA: Tensor, weights_BH: Tensor, g_max: float = G_MAX) -> Field:
    """A field that is pulled towards the old chunk wherever it is asked; see `guided_field`."""

    def guided(noisy: Tensor, tau: Tensor) -> Tensor:
        strength = guidance_strength(tau, g_max)[..., None]
        return guided_field(lambda point: field(point, tau), noisy, tau, strength, previous_BHA, weights_BH)

    return guided


def denoise_guided(
    field: Field,
    noise_BHA: Tensor,
    previous_BPA: Tensor,
    delay: int,
    end: int,
    steps: int = 10,
    g_max: float = G_MAX,
    schedule: str = 'exp',
) -> Tensor:
    """A new chunk [B, H, A] that continues the old one; see `prefix_weights` and `guide`.

    Raises:
        VlaError: the old chunk is shorter than `end`, of another width, or not finite.
    """
    H = noise_BHA.shape[1]
    weights_H = prefix_weights(H, delay, end, schedule, noise_BHA.device)
    previous_BHA = at_full_length(previous_BPA, noise_BHA, end)
    return flow.euler(guide(field, previous_BHA, weights_H[None], g_max), noise_BHA, steps)


@torch.no_grad()
def denoise_trained(field: Field, noise_BHA: Tensor, previous_BPA: Tensor, delay: int, steps: int = 10) -> Tensor:
    """A new chunk [B, H, A] whose first `delay` actions are the old ones, exactly; whole tokens (`given_steps`).

    At every step those actions are put in clean, each with its own tau = 1, as in training with `max_delay`.

    Raises:
        VlaError: the old chunk is shorter than `delay`, of another width, or not finite.
    """
    H = noise_BHA.shape[1]
    if not 0 <= delay < H:
        raise VlaError(f'delay: {delay} must be at least 0 and below the horizon {H}.')
    previous_BHA = at_full_length(previous_BPA, noise_BHA, delay)
    given_H = torch.arange(H, device=noise_BHA.device) < delay

    def with_given(noisy: Tensor, tau: Tensor) -> Tensor:
        noisy = torch.where(given_H[:, None], previous_BHA, noisy)
        return field(noisy, torch.where(given_H, 1.0, tau))

    return torch.where(given_H[:, None], previous_BHA, flow.euler(with_given, noise_BHA, steps))


def given_steps(delay: int, rows: int, horizon: int, steps_per_token: int) -> int:
    """How many of the old actions are given for a delay: whole tokens, as many as the old chunk has.

    A token that the delay ends in is given whole, so the new chunk is free from the next token on, and never all given.

    Args:
        delay: steps that will have been executed when the new chunk is there.
        rows: steps that are left of the old chunk.
        horizon: steps of a chunk.
        steps_per_token: action steps of a token of the expert.
    """
    whole, left = flow.whole_tokens(delay, steps_per_token), rows - rows % steps_per_token
    return min(whole, left, horizon - steps_per_token)


def at_full_length(previous_BPA: Tensor, noise_BHA: Tensor, needed: int) -> Tensor:
    """The old chunk at full length; what is added repeats its last row and is never looked at."""
    B, H, A = noise_BHA.shape
    P = previous_BPA.shape[1]
    if previous_BPA.shape[::2] != (B, A) or P > H:
        raise VlaError(f'previous: shape {tuple(previous_BPA.shape)} should be ({B}, at most {H}, {A}).')
    if needed > P:
        raise VlaError(f'previous: {P} steps are left of the old chunk, but {needed} are needed.')
    if not bool(previous_BPA.isfinite().all()):
        raise VlaError('previous: the old chunk has values that are not finite; start without it.')
    if P == 0:
        return torch.zeros_like(noise_BHA)
    return torch.cat([previous_BPA, previous_BPA[:, -1:].expand(-1, H - P, -1)], dim=1).to(noise_BHA.dtype)
