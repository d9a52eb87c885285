"""Gemma: the layer that backbone and action expert share, and the backbone.

The backbone is run in segments. `prefix` reads images and prompt, all of it seeing all of it, and hands on the keys and
values of every layer. `segment` reads what comes after (target tokens, or actions in the recipes that give them to the
backbone), looking at that context. One cached prefix therefore serves training, decoding and the action expert.

Shape legend: B batch, R draws, Q queries, S prefix tokens, D width, N heads, G key/value heads, K head dim.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ki_vla.model.config import GemmaConfig
from ki_vla.model.insulation import attend

EPS = 1e-6
ROPE_BASE = 10_000.0
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Context(NamedTuple):
    """Rotated keys and values of an earlier segment, [B, S, G, K] for each layer, and who sees them [B, 1|Q, S]."""

    k: Tensor | tuple[Tensor, ...]
    v: Tensor | tuple[Tensor, ...]
    sees_BQS: Tensor


def run(layer: Callable[..., Any], checkpointing: bool, *args: Any, **kwargs: Any) -> Any:
    """Call a layer; with `checkpointing`, keep only its inputs and compute it again in the backward pass."""
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *args, use_reentrant=False, **kwargs)
    return layer(*args, **kwargs)


def rms(x: Tensor) -> Tensor:
    """X over its root mean square, in float32 whatever the dtype of x."""
    x = x.float()
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + EPS)


class RMSNorm(nn.Module):
    """RMS norm times (1 + weight), in float32. Returns no gate: see `expert.AdaptiveNorm`, which has the same call."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, None]:
        """[..., D] -> [..., D] in the dtype of x."""
        return (rms(x) * (1.0 + self.weight.float())).to(x.dtype), None


def rope_table(positions: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, float32 [..., 1, K/2]; the 1 is for the heads."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angle = positions[..., None].float() * ROPE_BASE**-exponent
    return angle.cos()[..., None, :], angle.sin()[..., None, :]


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the two halves of every head by the angles of `rope_table` (half-split layout)."""
    cos, sin = rope
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def add(x: Tensor, out: Tensor, gate: Tensor | None) -> Tensor:
    """Residual connection, gated where the norm gave a gate."""
    return x + out if gate is None else x + out * gate


class GemmaLayer(nn.Module):
    """Norm, grouped-query attention, norm, tanh-GELU gated MLP. Any leading dimensions, then a sequence, then D."""

    def __init__(self, config: GemmaConfig, norm: Callable[[int], nn.Module] = RMSNorm) -> None:
        super().__init__()
        D, K = config.width, config.head_dim
        self.head_dim = K
        self.input_norm, self.mlp_norm = norm(D), norm(D)
        self.q = nn.Linear(D, config.heads * K, bias=False)
        self.k = nn.Linear(D, config.kv_heads * K, bias=False)
        self.v = nn.Linear(D, config.kv_heads * K, bias=False)
        self.o = nn.Linear(config.heads * K, D, bias=False)
        self.gate = nn.Linear(D, config.mlp, bias=False)
        self.up = nn.Linear(D, config.mlp, bias=False)
        self.down = nn.Linear(config.mlp, D, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], attend: Attend, cond: Any = None, rows: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """One layer.

        Args:
            x: [..., S, D].
            rope: from `rope_table` for the positions of x.
            attend: (q, k, v), each [..., S, heads, K] and rotated, q scaled -> mixed values like q.
            cond: what the norms are conditioned on; None for plain norms. A pair is one for each of the two norms.
            rows: int64 [B, n], only for x [B, S, D]: the rows whose output is wanted (n = 0: keys and values only).

        Returns:
            Output [..., S, D] (or [B, n, D], or None for n = 0), keys and values [..., S, G, K].
        """
        cond_in, cond_mlp = cond if isinstance(cond, tuple) else (cond, cond)
        h, gate = self.input_norm(x, cond_in)
        k, v = rotate(self._heads(self.k(h)), rope), self._heads(self.v(h))
        if rows is not None:
            if rows.shape[1] == 0:
                return None, k, v
            x, h = (torch.take_along_dim(t, rows[..., None], dim=1) for t in (x, h))
            rope = tuple(torch.take_along_dim(t, rows[..., None, None], dim=1) for t in rope)
        q = rotate(self._heads(self.q(h)), rope) * self.head_dim**-0.5
        x = add(x, self.o(attend(q, k, v).flatten(-2)), gate)
        h, gate = self.mlp_norm(x, cond_mlp)
        return add(x, self.down(F.gelu(self.gate(h), approximate='tanh') * self.up(h)), gate), k, v

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


def full_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Plain attention, q, k, v [B, N, S, K] -> [B, N, S, K]; scale 1 / sqrt(K) unless given.

    Under autocast on a CPU it runs in float32: torch's bfloat16 kernel there takes seven times as long backwards.
    """
    if q.device.type != 'cpu' or not torch.is_autocast_enabled('cpu'):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale)
    with torch.autocast('cpu', enabled=False):
        mixed = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask, scale=scale)
    return mixed.to(q.dtype)


def attend_prefix(q_BSNK: Tensor, k_BSGK: Tensor, v_BSGK: Tensor, mask_BS: Tensor) -> Tensor:
    """Every query sees every valid key; the first row of equation 5."""
    B, S, G, K = k_BSGK.shape
    group = q_BSNK.shape[2] // G
    k, v = (
        t[:, :, :, None].expand(B, S, G, group, K).reshape(B, S, G * group, K).transpose(1, 2) for t in (k_BSGK, v_BSGK)
    )
    mixed = full_attention(q_BSNK.transpose(1, 2), k, v, mask_BS[:, None, None, :], scale=1.0)
    return mixed.transpose(1, 2)


class Backbone(nn.Module):
    """The Gemma decoder of the vision-language model, without its embedding (which is also the output head)."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.layers = nn.ModuleList(GemmaLayer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)

    def prefix(
        self, x_BSD: Tensor, mask_BS: Tensor, positions_BS: Tensor, rows_Bn: Tensor | None, checkpointing: bool = False
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor | None]:
        """Keys and values of every layer, and the normed output at `rows_Bn` (None: everywhere; [B, 0]: nowhere).

        Nobody needs the last layer's output except to predict the first token after the prefix, so it is computed only
        where it is asked for.
        """
        rope = rope_table(positions_BS, self.head_dim)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            rows = rows_Bn if index == len(self.layers) - 1 else None
            x_BSD, k, v = run(
                layer, checkpointing, x_BSD, rope, lambda q, k, v: attend_prefix(q, k, v, mask_BS), rows=rows
            )
            keys.append(k)
            values.append(v)
        return tuple(keys), tuple(values), None if x_BSD is None else self.norm(x_BSD)[0]

    def segment(
        self, x_BRQD: Tensor, positions_BQ: Tensor, context: Context, sees_own: Tensor, checkpointing: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Tokens that follow a context: normed output [B, R, Q, D], and their own keys and values [B, R, Q, G, K]."""
        rope = rope_table(positions_BQ[:, None], self.head_dim)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            x_BRQD, k, v = run(layer, checkpointing, x_BRQD, rope, reader(context, index, sees_own, insulate=False))
            keys.append(k)
            values.append(v)
        return self.norm(x_BRQD)[0], tuple(keys), tuple(values)


def reader(context: Context, layer: int, sees_own: Tensor, insulate: bool) -> Attend:
    """The attention of one layer of a segment: its context and itself, as `GemmaLayer` wants it."""
    k_BSGK, v_BSGK = context.k[layer], context.v[layer]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, k_BSGK, v_BSGK, context.sees_BQS, sees_own, insulate)

    return attention
