"""Gemma: the layer that backbone and action expert share, and the backbone.

`DecoderLayer` is the layer's function, written once. `GemmaLayer` holds its matrices one by one, as they are trained
and saved; `ki_vla.engine.packing.PackedLayer` holds fewer and larger ones, for speed;
tests/ki_vla/engine/test_stages.py holds both to the same numbers.

The backbone runs in segments. `prefix` reads images and prompt with full attention and returns the keys and values of
every layer. `segment` reads what follows (target tokens, or actions in recipes that give them to the backbone) and
attends to that context. One cached prefix therefore serves training, decoding and the action expert.

Shape legend: B batch, R draws, Q queries, S prefix tokens, D width, N heads, G key/value heads, K head dim.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ki_vla.model.config import GemmaConfig
from ki_vla.model.insulation import attend

EPS = 1e-6
ROPE_BASE = 10_000.0
Rope = tuple[Tensor, Tensor]
Outputs = tuple[Tensor | None, Tensor, Tensor]  # output (None where none is asked for), keys, values
# (q [..., S, N, K], k [..., S, G, K], v [..., S, G, K]) -> mixed values [..., S, N * K]
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
    """RMS norm times (1 + weight), in float32. Returns no gate: see `AdaptiveNorm`, which has the same call."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, None]:
        """[..., D] -> [..., D] in the dtype of x."""
        return (rms(x) * (1.0 + self.weight.float())).to(x.dtype), None


class AdaptiveNorm(nn.Module):
    """RMS norm whose scale, shift and gate are computed from a condition: y = rms(x) * (1 + scale) + shift.

    `dense` starts at zero, so that every gated branch starts closed and the layer is the identity.
    """

    def __init__(self, width: int, cond_width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(cond_width, 3 * width)

    def forward(self, x: Tensor, cond: Tensor) -> tuple[Tensor, Tensor]:
        """X [..., Q, D] and cond [..., 1|Q, C] -> normed [..., Q, D], and the gate of what follows [..., 1|Q, D]."""
        scale, shift, gate = self.dense(cond).float().chunk(3, dim=-1)
        return (rms(x) * (1.0 + scale) + shift).to(x.dtype), gate.to(x.dtype)


def rope_table(positions: Tensor, head_dim: int) -> Rope:
    """Cosine and sine of the rotary angles, float32 [..., 1, K/2]; the 1 is for the heads."""
    exponent = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angle = positions[..., None].float() * ROPE_BASE**-exponent
    return angle.cos()[..., None, :], angle.sin()[..., None, :]


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Turn the two halves of every head by the angles of `rope_table` (half-split layout)."""
    cos, sin = rope
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def add(x: Tensor, out: Tensor, gate: Tensor | None) -> Tensor:
    """Residual connection, gated where the norm gave a gate."""
    return x + out if gate is None else x + out * gate


class DecoderLayer(nn.Module):
    """Norm, grouped-query attention, norm, tanh-GELU gated MLP, whatever way the matrices are held.

    A subclass has the norms `input_norm` and `mlp_norm`, each (x, cond) -> (normed, gate or None), and the projections
    `o` and `down`. Any leading dimensions, then a sequence, then D.
    """

    head_dim: int
    input_norm: nn.Module
    mlp_norm: nn.Module
    o: nn.Module
    down: nn.Module

    def heads_of(self, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Normed inputs [..., S, D] -> rotated queries [..., S, N, K], rotated keys and values [..., S, G, K]."""
        raise NotImplementedError

    def gate_and_up(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Normed inputs [..., S, D] -> the two halves of the gated MLP's hidden layer [..., S, M]."""
        raise NotImplementedError

    def forward(self, x: Tensor, rope: Rope, attend: Attend, cond: Any = None) -> Outputs:
        """One layer.

        Args:
            x: [..., S, D].
            rope: from `rope_table` for the positions of x.
            attend: (q, k, v), each [..., S, heads, K] and rotated, q scaled -> mixed values [..., S, N * K].
            cond: what the norms are conditioned on; None for plain norms. A pair is one for each of the two norms.

        Returns:
            Output [..., S, D], keys and values [..., S, G, K].
        """
        cond_in, cond_mlp = cond if isinstance(cond, tuple) else (cond, cond)
        h, gate = self.input_norm(x, cond_in)
        q, k, v = self.heads_of(h, rope)
        return self.after_attention(x, attend(q * self.head_dim**-0.5, k, v), gate, cond_mlp), k, v

    def after_attention(self, x: Tensor, mixed: Tensor, gate: Tensor | None, cond: Any = None) -> Tensor:
        """The rest of the layer: both residual connections and the MLP."""
        x = add(x, self.o(mixed), gate)
        h, gate = self.mlp_norm(x, cond)
        gate_h, up_h = self.gate_and_up(h)
        return add(x, self.down(F.gelu(gate_h, approximate='tanh') * up_h), gate)


class GemmaLayer(DecoderLayer):
    """The layer as it is trained and saved."""

    input_norm: RMSNorm | AdaptiveNorm
    mlp_norm: RMSNorm | AdaptiveNorm
    o: nn.Linear
    down: nn.Linear

    def __init__(self, config: GemmaConfig, norm: Callable[[int], RMSNorm | AdaptiveNorm] = RMSNorm) -> None:
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

    def forward(self, x: Tensor, rope: Rope, attend: Attend, cond: Any = None, rows: Tensor | None = None) -> Outputs:
        """As `DecoderLayer.forward`, for all rows of x or only for some.

        With `rows`, int64 [B, n], for x [B, S, D] and plain norms: the output of these rows alone, [B, n, D], or None
        for n = 0. Keys and values are those of all rows.
        """
        if rows is None:
            return super().forward(x, rope, attend, cond)
        h, gate = self.input_norm(x)
        k, v = self._keys_values(h, rope)
        if rows.shape[1] == 0:
            return None, k, v
        x, h = (torch.take_along_dim(t, rows[..., None], dim=1) for t in (x, h))
        cos, sin = (torch.take_along_dim(t, rows[..., None, None], dim=1) for t in rope)
        q = rotate(self._split(self.q(h)), (cos, sin)) * self.head_dim**-0.5
        return self.after_attention(x, attend(q, k, v), gate), k, v

    def heads_of(self, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """See `DecoderLayer.heads_of`."""
        k, v = self._keys_values(h, rope)
        return rotate(self._split(self.q(h)), rope), k, v

    def gate_and_up(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `DecoderLayer.gate_and_up`."""
        return self.gate(h), self.up(h)

    def _keys_values(self, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        return rotate(self._split(self.k(h)), rope), self._split(self.v(h))

    def _split(self, x: Tensor) -> Tensor:
        heads: Tensor = x.unflatten(-1, (-1, self.head_dim))
        return heads


def run_layers(
    layers: Iterable[nn.Module],
    x: Tensor,
    rope: Rope,
    attend_at: Callable[[int], Attend],
    cond_at: Callable[[int], Any] = lambda index: None,
    checkpointing: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Layers one after the other: output [..., S, D], and every layer's keys and values [..., S, G, K].

    Args:
        layers: of `DecoderLayer`.
        x: [..., S, D].
        rope: see `DecoderLayer.forward`.
        attend_at: the attention of a layer, by its number.
        cond_at: what its norms are conditioned on, by its number.
        checkpointing: see `run`.
    """
    keys, values = [], []
    for index, layer in enumerate(layers):
        x, k, v = run(layer, checkpointing, x, rope, attend_at(index), cond=cond_at(index))
        keys.append(k)
        values.append(v)
    return x, tuple(keys), tuple(values)


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
    """Every query sees every valid key, mixed values [B, Q, N * K]; the first row of equation 5.

    Heads that share keys and values are rows of one product with them, so that these are never copied; with a single
    key/value head nothing is moved at all. Every kernel takes that, with a mask too; `enable_gqa` leaves those out
    that take masks.
    """
    B, Q, N, K = q_BSNK.shape
    G = k_BSGK.shape[2]
    q_BGRK = q_BSNK.reshape(B, Q, G, N // G, K).transpose(1, 2).reshape(B, G, Q * (N // G), K)
    k, v = k_BSGK.transpose(1, 2), v_BSGK.transpose(1, 2)
    mixed = full_attention(q_BGRK, k, v, mask_BS[:, None, None, :], scale=1.0)
    return mixed.reshape(B, G, Q, N // G, K).transpose(1, 2).reshape(B, Q, N * K)


class Backbone(nn.Module):
    """The Gemma decoder of the vision-language model, without its embedding (which is also the output head)."""

    def __init__(self, config: GemmaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.layers = nn.ModuleList(GemmaLayer(config) for _ in range(config.depth))
        self.norm = RMSNorm(config.width)

    def prefix(
        self,
        x_BSD: Tensor,
        mask_BS: Tensor,
        positions_BS: Tensor,
        rows_Bn: Tensor | None,
        checkpointing: bool = False,
        after: Sequence[int] = (),
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], Tensor | None, tuple[Tensor, ...]]:
        """Keys and values of every layer, and the normed output at `rows_Bn` (None: everywhere; [B, 0]: nowhere).

        Nobody needs the last layer's output except to predict the first token after the prefix, so it is computed only
        where it is asked for. The last of what is returned is the normed state [B, S, D] after so many layers each, of
        `after`, ascending and fewer than there are: what the keys and values of the next layer are made of.
        """
        rope = rope_table(positions_BS, self.head_dim)

        def seen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_prefix(q, k, v, mask_BS)

        *layers, last = self.layers
        keys: tuple[Tensor, ...] = ()
        values: tuple[Tensor, ...] = ()
        passed = []
        for begin, end in itertools.pairwise((0, *after, len(layers))):
            x_BSD, k_n, v_n = run_layers(
                layers[begin:end], x_BSD, rope, lambda index: seen, checkpointing=checkpointing
            )
            keys, values = (*keys, *k_n), (*values, *v_n)
            passed.append(x_BSD)
        out_BnD, k, v = run(last, checkpointing, x_BSD, rope, seen, rows=rows_Bn)
        out_BnD = None if out_BnD is None else self.norm(out_BnD)[0]
        return (*keys, k), (*values, v), out_BnD, tuple(self.norm(each)[0] for each in passed[: len(after)])

    def segment(
        self, x_BRQD: Tensor, positions_BQ: Tensor, context: Context, sees_own: Tensor, checkpointing: bool = False
    ) -> tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Tokens that follow a context: normed output [B, R, Q, D], and their own keys and values [B, R, Q, G, K]."""
        rope = rope_table(positions_BQ[:, None], self.head_dim)
        x_BRQD, keys, values = run_layers(
            self.layers, x_BRQD, rope, partial(reader, context, sees_own, False), checkpointing=checkpointing
        )
        return self.norm(x_BRQD)[0], keys, values


def reader(context: Context, sees_own: Tensor, insulate: bool, layer: int) -> Attend:
    """The attention of one layer of a segment: its context and itself, as `DecoderLayer` wants it."""
    k_BSGK, v_BSGK = context.k[layer], context.v[layer]

    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, k_BSGK, v_BSGK, context.sees_BQS, sees_own, insulate).flatten(-2)

    return attention
