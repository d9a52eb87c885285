"""The action expert: a small Gemma that turns noisy actions into the flow field, reading the backbone's K and V.

Time enters through adaptive RMSNorm (paper, appendix B), one tau for a whole chunk or one for each of its tokens.
pi0's older form is here too: plain norms, time mixed into the inputs by an MLP, and a state token in front of the
actions.

Shape legend: B batch, R draws, H horizon, P steps of a token, Q queries (H / P, or one more with a state token), A
action dims, D width, C width of cond.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_vla.errors import VlaError
from ki_vla.model import masks
from ki_vla.model.config import ModelConfig
from ki_vla.model.flow import time_features
from ki_vla.model.gemma import AdaptiveNorm, Context, GemmaLayer, RMSNorm, reader, rope_table, run_layers


class Expert(nn.Module):
    """Flow-matching action expert, read as  field = expert(noisy actions, tau, context)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.expert.width
        self.head_dim, self.width, self.adaptive = config.expert.head_dim, D, config.adaptive
        self.steps_per_token = config.steps_per_token
        self.action_in = nn.Linear(config.steps_per_token * config.action_dim, D)
        self.time_in = nn.Linear(D if config.adaptive else 2 * D, D)
        self.time_out = nn.Linear(D, D)
        self.state_in = nn.Linear(config.state_token_dim, D) if config.state_for_expert else None
        norm = (lambda width: AdaptiveNorm(width, D)) if config.adaptive else RMSNorm
        self.layers = nn.ModuleList(GemmaLayer(config.expert, norm) for _ in range(config.expert.depth))
        self.norm = norm(D)
        self.action_out = nn.Linear(D, config.steps_per_token * config.action_dim)

    def condition(self, tau: Tensor) -> Tensor:
        """Tau [...] -> what the adaptive norms read [..., C]: swish(W2 swish(W1 phi))."""
        features = time_features(tau, self.width).to(self.time_in.weight.dtype)
        return F.silu(self.time_out(F.silu(self.time_in(features))))

    def modulations(self, tau: Tensor) -> list[Tensor]:
        """Scale, shift and gate of every adaptive norm for tau [..., 1|Q], each [..., 1|Q, 3 D], in the order of use.

        They depend on tau only: an engine with fixed steps computes them once (`ki_vla.engine.packing.TimeModulation`).
        """
        cond = self.condition(tau)
        norms = [norm for layer in self.layers for norm in (layer.input_norm, layer.mlp_norm)]
        return [cast(AdaptiveNorm, norm).dense(cond) for norm in (*norms, self.norm)]

    def forward(
        self,
        noisy_BRHA: Tensor,
        tau: Tensor,
        context: Context,
        positions_BQ: Tensor,
        state_BS: Tensor | None = None,
        insulate: bool = True,
        checkpointing: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """The flow field omega - a at the noisy actions.

        Args:
            noisy_BRHA: a_tau.
            tau: [B, R, 1] for one a chunk, [B, R, H] for one a step, the same for all steps of a token.
            context: the backbone's keys and values.
            positions_BQ: positions of the queries, after the prefix.
            state_BS: normalised state, and what a pointer says; only for a state token (pi0).
            insulate: stop the gradient towards the context (equations 5 and 6).
            checkpointing: recompute the layers in the backward pass.

        Returns:
            field_BRHA, and the expert's own keys and values per layer [B, R, Q, G, K].

        Raises:
            VlaError: no state for a state token.
        """
        if tau.shape[-1] > 1:
            tau = tau[..., :: self.steps_per_token]
        tokens_BRHA = grouped(noisy_BRHA, self.steps_per_token)
        x_BRQD, cond = self._embed(tokens_BRHA, tau, state_BS)
        Q = x_BRQD.shape[2]
        own = masks.everyone if self.state_in is None else masks.state_then_actions
        sees_own = own(Q, noisy_BRHA.device)
        x_BRQD, keys, values = run_layers(
            self.layers,
            x_BRQD,
            rope_table(positions_BQ[:, None], self.head_dim),
            partial(reader, context, sees_own, insulate),
            lambda index: cond,
            checkpointing,
        )
        x_BRQD, _ = self.norm(x_BRQD, cond)
        field_BRHA = self.action_out(x_BRQD[:, :, -tokens_BRHA.shape[2] :])
        return field_BRHA.reshape(noisy_BRHA.shape), keys, values

    def _embed(self, noisy_BRHA: Tensor, tau: Tensor, state_BS: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Inputs of the first layer, and what the adaptive norms read; None for plain ones."""
        x_BRQD = self.action_in(noisy_BRHA.to(self.action_in.weight.dtype))
        cond = self.condition(tau) if self.adaptive else None
        if not self.adaptive:
            features = time_features(tau, self.width).to(x_BRQD.dtype).expand_as(x_BRQD)
            x_BRQD = self.time_out(F.silu(self.time_in(torch.cat([x_BRQD, features], dim=-1))))
        if self.state_in is not None:
            if state_BS is None:
                raise VlaError('a state token needs the state, and the prefix was made without one.')
            state_BD = self.state_in(state_BS.to(self.state_in.weight.dtype))
            state = state_BD[:, None, None].expand(-1, x_BRQD.shape[1], 1, -1)
            x_BRQD = torch.cat([state, x_BRQD], dim=2)
            if cond is not None and cond.shape[2] > 1:
                # The state is clean: its own tau is 1.
                clean = self.condition(torch.ones_like(tau[..., :1]))
                cond = torch.cat([clean, cond], dim=2)
        return x_BRQD, cond


def grouped(actions: Tensor, steps: int) -> Tensor:
    """Actions [..., H, A] -> tokens of so many steps each [..., H / steps, steps * A]."""
    return actions.reshape(*actions.shape[:-2], actions.shape[-2] // steps, steps * actions.shape[-1])


class SharedHead(nn.Module):
    """Transfusion: the backbone's own weights denoise; only the projections in and out of the actions are new.

    Time is added as fixed features, so that nothing but the projections has to be learned from scratch.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width = config.backbone.width
        self.action_in = nn.Linear(config.action_dim, self.width)
        self.action_out = nn.Linear(self.width, config.action_dim)

    def embed(self, noisy_BRHA: Tensor, tau: Tensor) -> Tensor:
        """Noisy actions and tau [B, R, 1|H] -> backbone inputs [B, R, H, D]."""
        x_BRHD: Tensor = self.action_in(noisy_BRHA.to(self.action_in.weight.dtype))
        return x_BRHD + time_features(tau, self.width).to(x_BRHD.dtype)


class ParallelHead(nn.Module):
    """OpenVLA-OFT: one learned query a step, read by the backbone both ways at once, then an MLP to the action."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        D = config.backbone.width
        self.query = nn.Embedding(config.horizon, D)
        self.hidden = nn.Linear(D, D)
        self.action_out = nn.Linear(D, config.action_dim)

    def embed(self, batch: int) -> Tensor:
        """Backbone inputs [B, 1, H, D]."""
        return self.query.weight[None, None].expand(batch, 1, -1, -1)

    def decode(self, x_BRHD: Tensor) -> Tensor:
        """Backbone outputs -> actions [B, R, H, A]."""
        actions_BRHA: Tensor = self.action_out(F.gelu(self.hidden(x_BRHD), approximate='tanh'))
        return actions_BRHA
