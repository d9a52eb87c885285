"""Flow matching: time, noise, field and sampler. All sign and time conventions are defined here.

tau = 0 is noise and tau = 1 is the action:  a_tau = tau a + (1 - tau) omega.  The network predicts omega - a (paper,
equation 3), so an Euler step of size d goes to  a_tau - d * field.

Public checkpoints (openpi, lerobot) use t = 1 - tau: the same field with reversed time. `time_features` reads 1 - tau,
so their weights need no conversion.

Shape legend: B batch, R draws, H horizon, A action dims; `...` any leading dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from ki_vla.errors import VlaError

ALPHA, S = 1.5, 0.999
MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0
Field = Callable[[Tensor, Tensor], Tensor]
Count = TypeVar('Count', int, Tensor)


def time_features(tau: Tensor, width: int) -> Tensor:
    """phi: tau [...] -> float32 [..., width], sines then cosines with periods from 4e-3 to 4, on the clock 1 - tau.

    The fastest feature turns 250 times in the unit of time. Times and frequencies are split into a coarse part, whose
    product is exact in float32 so that whole turns can be dropped, and a small rest: angles stay within one turn and
    are right to float32, on every device and in every exported graph.
    """
    fraction = torch.linspace(0.0, 1.0, width // 2, device=tau.device, dtype=torch.float64)
    turns = MIN_PERIOD**-1 * (MIN_PERIOD / MAX_PERIOD) ** fraction
    coarse_turns = torch.round(turns * 2**4) / 2**4
    fine_turns = (turns - coarse_turns).float()
    t = (1.0 - tau.float())[..., None]
    coarse_t = torch.round(t * 2**12) / 2**12
    whole = coarse_t * coarse_turns.float()
    angle = 2.0 * math.pi * (whole - torch.floor(whole) + coarse_t * fine_turns + (t - coarse_t) * turns.float())
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def sample_tau(
    shape: tuple[int, ...], generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """Times with the density of the paper: (s - tau) / s ~ Beta(1.5, 1), which favours low tau, the noisy end.

    Beta(1.5, 1) has the distribution function x^1.5, so it is drawn by inversion.
    """
    uniform = torch.rand(shape, generator=generator, device=_home(generator, device)).to(device)
    return S * (1.0 - uniform ** (1.0 / ALPHA))


def sample_noise(
    shape: tuple[int, ...], generator: torch.Generator | None = None, device: torch.device | None = None
) -> Tensor:
    """omega: normal noise, float32."""
    return torch.randn(shape, generator=generator, device=_home(generator, device)).to(device)


def _home(generator: torch.Generator | None, device: torch.device | None) -> torch.device | None:
    """Where numbers are drawn: beside their generator, so that one seed on the CPU means the same on every device."""
    return device if generator is None else generator.device


def noised(actions: Tensor, noise: Tensor, tau: Tensor) -> Tensor:
    """a_tau for actions and noise [..., H, A] and tau [..., 1|H]."""
    return tau[..., None] * actions + (1.0 - tau[..., None]) * noise


def target(actions: Tensor, noise: Tensor) -> Tensor:
    """What the network is to predict: omega - a."""
    return noise - actions


def give_first_actions(
    tau: Tensor, horizon: int, max_delay: int, generator: torch.Generator | None = None, steps_per_token: int = 1
) -> tuple[Tensor, Tensor]:
    """Training for real-time chunking: the first d actions are clean (tau = 1), d uniform in 0..max_delay.

    A token has one time, so of one with several steps all are given (`rtc.given_steps`).

    Args:
        tau: [B, R], or [B, R, H].
        horizon: H.
        max_delay: the largest d, in steps; it leaves a token.
        generator: for reproducible delays.
        steps_per_token: action steps of a token of the expert; divides the horizon.

    Returns:
        tau_BRH and the mask of given actions, bool [B, R, H], which carry no loss.

    Raises:
        VlaError: a delay that no chunk can have.
    """
    if not 0 <= max_delay <= horizon - steps_per_token:
        raise VlaError(
            f'max_delay: {max_delay} must be at least 0 and leave one token of the horizon {horizon}; write at most '
            f'{horizon - steps_per_token}.'
        )
    home = _home(generator, tau.device)
    delay_BR = torch.randint(0, max_delay + 1, tau.shape[:2], generator=generator, device=home).to(tau.device)
    given_BRH = torch.arange(horizon, device=tau.device) < whole_tokens(delay_BR, steps_per_token)[..., None]
    tau_BRH = tau if tau.ndim == 3 else tau[..., None].expand(-1, -1, horizon)
    return torch.where(given_BRH, 1.0, tau_BRH), given_BRH


def whole_tokens(steps: Count, steps_per_token: int) -> Count:
    """Action steps, rounded up to whole tokens of the expert."""
    return -(-steps // steps_per_token) * steps_per_token


def step(noisy: Tensor, field: Tensor, size: float) -> Tensor:
    """One Euler step of `size` in tau, towards the action."""
    return noisy - size * field


def clean_estimate(noisy: Tensor, field: Tensor, tau: Tensor) -> Tensor:
    """Where a straight line from here would end: the action the network has in mind at tau [..., 1|H]."""
    return noisy - (1.0 - tau[..., None]) * field


def step_times(steps: int, device: torch.device | None = None) -> Tensor:
    """Tau at the start of every Euler step, float32 [steps]: 0, 1/steps, ..."""
    return torch.arange(steps, device=device, dtype=torch.float32) / steps


def euler(field: Field, noise: Tensor, steps: int) -> Tensor:
    """Integrate from noise (tau 0) to the action (tau 1).

    Args:
        field: (noisy [..., H, A], tau [..., 1]) -> field [..., H, A].
        noise: [..., H, A].
        steps: number of Euler steps; 10 in the paper.
    """
    noisy = noise
    for tau in step_times(steps, noise.device):
        noisy = step(noisy, field(noisy, tau.expand(noisy.shape[:-2])[..., None]), 1.0 / steps)
    return noisy
