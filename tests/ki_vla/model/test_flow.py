"""Times, noise and the Euler sampler."""

from __future__ import annotations

import math

import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model import flow


def test_tau_has_the_density_of_the_paper() -> None:
    """Kolmogorov-Smirnov against (s - tau) / s ~ Beta(1.5, 1), at the 1 % level."""
    n = 20_000
    tau = flow.sample_tau((n,), torch.Generator().manual_seed(0)).double().sort().values
    assert float(tau.min()) >= 0.0
    assert float(tau.max()) <= flow.S
    exact = 1.0 - ((flow.S - tau) / flow.S) ** 1.5
    rank = torch.arange(n, dtype=torch.float64)
    distance = torch.maximum((rank + 1) / n - exact, exact - rank / n).max()
    assert float(distance) * math.sqrt(n) < 1.63


def test_tau_of_a_uniform_density_would_be_noticed() -> None:
    n = 20_000
    tau = torch.rand(n, generator=torch.Generator().manual_seed(0)).double().sort().values * flow.S
    exact = 1.0 - ((flow.S - tau) / flow.S) ** 1.5
    assert float((torch.arange(n) / n - exact).abs().max()) * math.sqrt(n) > 10


def test_noise_at_zero_and_action_at_one() -> None:
    actions, noise = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    assert torch.equal(flow.noised(actions, noise, torch.zeros(2, 1)), noise)
    assert torch.equal(flow.noised(actions, noise, torch.ones(2, 1)), actions)


@pytest.mark.parametrize('steps', [1, 3, 10])
def test_euler_is_exact_on_a_straight_line(steps: int) -> None:
    """The exact field of a single action, (a_tau - a) / (1 - tau), depends on where one is and on the time."""
    actions, noise = torch.randn(2, 5, 3, dtype=torch.float64), torch.randn(2, 5, 3, dtype=torch.float64)

    def field(noisy: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        return (noisy - actions) / (1.0 - tau[..., None])

    assert torch.allclose(flow.euler(field, noise, steps), actions, atol=1e-12)


def test_clean_estimate_and_target_agree_with_the_path() -> None:
    actions, noise, tau = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.tensor([[0.2], [0.9]])
    noisy = flow.noised(actions, noise, tau)
    assert torch.allclose(flow.clean_estimate(noisy, flow.target(actions, noise), tau), actions, atol=1e-6)


def test_time_features_run_on_the_clock_of_public_checkpoints() -> None:
    """By hand for width 4: periods 4e-3 and 4 of 1 - tau, sines before cosines."""
    tau = torch.tensor([0.25])
    t = 0.75
    expected = [f(2 * math.pi * t / period) for f in (math.sin, math.cos) for period in (4e-3, 4.0)]
    assert torch.allclose(flow.time_features(tau, 4)[0], torch.tensor(expected), atol=1e-6)
    assert flow.time_features(torch.rand(2, 3), 16).shape == (2, 3, 16)


def test_time_features_are_exact_although_the_fastest_turns_250_times() -> None:
    tau = torch.rand(200, generator=torch.Generator().manual_seed(0))
    t = 1.0 - tau
    period = 4e-3 * 1000.0 ** torch.linspace(0, 1, 32, dtype=torch.float64)
    angle = t.double()[:, None] * 2 * math.pi / period
    exact = torch.cat([angle.sin(), angle.cos()], dim=-1)
    assert (flow.time_features(tau, 64) - exact).abs().max() < 2e-6


def test_given_actions_are_clean_and_delays_cover_their_range() -> None:
    tau = torch.full((500, 2), 0.3)
    tau_BRH, given = flow.give_first_actions(tau, 8, 3, torch.Generator().manual_seed(0))
    assert set(given.sum(dim=-1).flatten().tolist()) == {0, 1, 2, 3}
    assert torch.equal(tau_BRH[given], torch.ones(int(given.sum())))
    assert torch.all(tau_BRH[~given] == 0.3)
    assert bool((given[..., :-1] | ~given[..., 1:]).all()), 'given actions come first'


@pytest.mark.parametrize(
    ('per_token', 'most', 'counts'), [(1, 7, {0, 1, 2, 3, 4, 5, 6, 7}), (2, 5, {0, 2, 4, 6}), (4, 4, {0, 4})]
)
def test_tokens_are_given_whole_and_never_all(per_token: int, most: int, counts: set[int]) -> None:
    generator = torch.Generator().manual_seed(0)
    tau_BRH, given = flow.give_first_actions(torch.full((500, 2), 0.3), 8, most, generator, per_token)
    assert set(given.sum(dim=-1).flatten().tolist()) == counts
    times = tau_BRH.unflatten(-1, (-1, per_token))
    assert torch.equal(times, times[..., :1].expand_as(times)), 'a token has one time'
    with pytest.raises(VlaError, match=f'leave one token of the horizon 8; write at most {8 - per_token}'):
        flow.give_first_actions(torch.full((5, 2), 0.3), 8, 9 - per_token, generator, per_token)
