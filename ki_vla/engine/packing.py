"""The model's layers packed for inference: fewer, larger matrix products; what is constant is computed beforehand.

`ki_vla.model.gemma.DecoderLayer` and `ki_vla.model.siglip.EncoderLayer` define what a layer computes; this file holds
its matrices in a second form. `Fusions` names the changes made to the weights. None changes the function:
tests/ki_vla/engine/test_stages.py compares each alone, and all together, with `KiVla`.
    packed   q, k and v are one product, gate and up are another
    folded   weights of a norm (Gemma's 1 + w, SigLIP's scale and shift) move into the product that follows it
    pixels   uint8 -> [-1, 1] moves into the patch projection, which becomes a matrix product

There is no batch here: a robot asks for one chunk at a time.

Shape legend: V views, N tokens a view (or heads), S rows of a sequence, Q queries, G key/value heads, K head dim, D
width, P pixels of a patch, T times.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_vla.model.expert import Expert
from ki_vla.model.flow import time_features
from ki_vla.model.gemma import AdaptiveNorm, DecoderLayer, GemmaLayer, RMSNorm, Rope, rms, rotate
from ki_vla.model.siglip import EPS, EncoderLayer, VisionLayer

Rows = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Fusions:
    """Which of the changes above are made."""

    packed: bool = True
    folded: bool = True
    pixels: bool = True


PLAIN = Fusions(packed=False, folded=False, pixels=False)


class Product(nn.Module):
    """Several projections of one input, as one matrix product or one each; weights are held as [inputs, outputs].

    Args:
        layers: the projections.
        packed: one product for all of them.
        scale, shift: of the norm in front, [D]; multiplied in float32, then rounded once.
    """

    def __init__(
        self, layers: Sequence[nn.Linear], packed: bool, scale: Tensor | None = None, shift: Tensor | None = None
    ) -> None:
        super().__init__()
        self.widths = [layer.out_features for layer in layers]
        groups = [layers] if packed else [[layer] for layer in layers]
        parts = [_joined(group, scale, shift) for group in groups]
        self.weights = nn.ParameterList(_fixed(weight) for weight, _ in parts)
        biases = [bias for _, bias in parts if bias is not None]
        self.biases = nn.ParameterList(map(_fixed, biases)) if biases else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., sum of widths]; `widths` says how to split it."""
        outputs = [x @ weight for weight in self.weights]
        if self.biases is not None:
            outputs = [y + bias for y, bias in zip(outputs, self.biases, strict=True)]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _fixed(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


def _joined(layers: Sequence[nn.Linear], scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Weights [D, sum of widths] and biases of several layers behind a norm's scale and shift."""
    # A single untouched layer is only looked at from the other side: no copy.
    weight = layers[0].weight.detach() if len(layers) == 1 else torch.cat([layer.weight.detach() for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
    if shift is not None and bias is not None:
        bias = (bias.float() + weight.float() @ shift.detach().float()).to(weight.dtype)
    if scale is not None:
        weight = (weight.float() * scale.detach().float()).to(weight.dtype)
    return weight.t(), bias


class PackedNorm(nn.Module):
    """RMS norm: with its own scale, without one (folded), or with rows of a table."""

    def __init__(self, scale: Tensor | None = None) -> None:
        super().__init__()
        self.scale = None if scale is None else _fixed(scale)

    def forward(self, x: Tensor, rows: Rows | None = None) -> tuple[Tensor, Tensor | None]:
        """X [S, D]; rows (1 + scale, shift, gate), each [D] or [S, D] -> normed, and the gate of what follows."""
        if rows is not None:
            scale, shift, gate = rows
            return (rms(x) * scale + shift).to(x.dtype), gate
        return (rms(x) if self.scale is None else rms(x) * self.scale).to(x.dtype), None


def norm_of(norm: RMSNorm | AdaptiveNorm, fusions: Fusions) -> tuple[PackedNorm, Tensor | None]:
    """The norm, and the scale that the product behind it takes over."""
    if isinstance(norm, AdaptiveNorm):
        return PackedNorm(), None
    scale = 1.0 + norm.weight.detach().float()
    return (PackedNorm(), scale) if fusions.folded else (PackedNorm(scale), None)


class PackedLayer(DecoderLayer):
    """A `GemmaLayer` of backbone or expert for x [S, D]; `cond` is a pair of `Rows` (see `PackedNorm`), or None."""

    def __init__(self, layer: GemmaLayer, fusions: Fusions) -> None:
        super().__init__()
        K = self.head_dim = layer.head_dim
        self.heads, self.kv_heads = layer.q.out_features // K, layer.k.out_features // K
        self.input_norm, scale_in = norm_of(layer.input_norm, fusions)
        self.mlp_norm, scale_mlp = norm_of(layer.mlp_norm, fusions)
        self.qkv = Product([layer.q, layer.k, layer.v], fusions.packed, scale_in)
        self.o = Product([layer.o], True)
        self.gate_up = Product([layer.gate, layer.up], fusions.packed, scale_mlp)
        self.down = Product([layer.down], True)

    def heads_of(self, h: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """See `DecoderLayer.heads_of`; queries and keys are rotated together."""
        N, G, K = self.heads, self.kv_heads, self.head_dim
        qk, v = self.qkv(h).unflatten(-1, (N + 2 * G, K)).split([N + G, G], dim=1)
        q, k = rotate(qk, rope).split([N, G], dim=1)
        return q, k, v

    def gate_and_up(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `DecoderLayer.gate_and_up`."""
        gate, up = self.gate_up(h).split(self.gate_up.widths, dim=-1)
        return gate, up


class PackedLastLayer(nn.Module):
    """The last layer of a prefix: only its keys and values are read."""

    def __init__(self, layer: GemmaLayer, fusions: Fusions) -> None:
        super().__init__()
        self.head_dim, self.kv_heads = layer.head_dim, layer.k.out_features // layer.head_dim
        self.norm_in, scale = norm_of(layer.input_norm, fusions)
        self.kv = Product([layer.k, layer.v], fusions.packed, scale)

    def forward(self, x: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """X [S, D] -> keys and values [S, G, K]."""
        h, _ = self.norm_in(x)
        k, v = self.kv(h).unflatten(-1, (-1, self.head_dim)).split([self.kv_heads, self.kv_heads], dim=1)
        return rotate(k, rope), v


class PackedVisionLayer(EncoderLayer):
    """A `VisionLayer`; the views of one observation go through at once."""

    def __init__(self, layer: VisionLayer, fusions: Fusions) -> None:
        super().__init__()
        self.heads, self.width = layer.heads, layer.q.in_features
        self.norm1, scale1, shift1 = _layer_norm(layer.norm1, fusions)
        self.norm2, scale2, shift2 = _layer_norm(layer.norm2, fusions)
        self.qkv = Product([layer.q, layer.k, layer.v], fusions.packed, scale1, shift1)
        self.out = Product([layer.out], True)
        self.fc1 = Product([layer.fc1], True, scale2, shift2)
        self.fc2 = Product([layer.fc2], True)

    def heads_of(self, h_IND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `EncoderLayer.heads_of`."""
        heads = self.qkv(h_IND).unflatten(-1, (3, self.heads, self.width // self.heads))
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v


def _layer_norm(norm: nn.LayerNorm, fusions: Fusions) -> tuple[nn.LayerNorm, Tensor | None, Tensor | None]:
    if not fusions.folded:
        return norm, None, None
    bare = nn.LayerNorm(norm.normalized_shape, eps=EPS, elementwise_affine=False)
    return bare, norm.weight, norm.bias


class Patches(nn.Module):
    """The patch projection as a matrix product over cut-out pixels, with or without uint8 -> [-1, 1] folded in."""

    def __init__(self, patch: nn.Conv2d, position_ND: Tensor, fusions: Fusions) -> None:
        super().__init__()
        self.size, self.folded = patch.stride[0], fusions.pixels
        # Colours last, as cameras give them.
        weight_DP = patch.weight.detach().float().permute(0, 2, 3, 1).flatten(1)
        bias_D = cast(Tensor, patch.bias).detach().float()
        if self.folded:
            # x / 127.5 - 1: whole numbers up to 255 are exact in every float type there is here, bfloat16 too.
            weight_DP, bias_D = weight_DP / 127.5, bias_D - weight_DP.sum(dim=1)
        dtype = patch.weight.dtype
        self.weight = _fixed(weight_DP.t().to(dtype))
        self.offset = _fixed((position_ND.detach().float() + bias_D).to(dtype))

    def forward(self, images_VHWC: Tensor) -> Tensor:
        """Uint8 [V, H, W, 3] -> [V, N, D], positions added."""
        V, H, W, C = images_VHWC.shape
        p = self.size
        cut = images_VHWC.reshape(V, H // p, p, W // p, p, C).permute(0, 1, 3, 2, 4, 5)
        pixels_VNP = cut.reshape(V, (H // p) * (W // p), p * p * C).to(self.weight.dtype)
        if not self.folded:
            pixels_VNP = pixels_VNP / 127.5 - 1.0
        return pixels_VNP @ self.weight + self.offset


class TimeModulation(nn.Module):
    """Everything of the action expert that depends on tau alone, for given times.

    Adaptive norms: 1 + scale, shift and gate of every norm. pi0's plain norms: the time half of the first layer of its
    MLP, into whose other half `action_in` is multiplied.

    Args:
        expert: whose.
        tau: float32 [T].
    """

    # Of every norm in the order of use [n, T, D]; for plain norms the bias of pi0's MLP [T, D].
    scale: Tensor
    shift: Tensor
    gate: Tensor
    bias: Tensor

    def __init__(self, expert: Expert, tau: Tensor) -> None:
        super().__init__()
        self.adaptive = expert.adaptive
        with torch.no_grad():
            if self.adaptive:
                table_nTD3 = torch.stack([each[:, 0] for each in expert.modulations(tau[:, None])])
                scale, shift, gate = table_nTD3.chunk(3, dim=-1)
                self.register_buffer('scale', 1.0 + scale.float(), persistent=False)
                self.register_buffer('shift', shift.float().contiguous(), persistent=False)
                self.register_buffer('gate', gate.contiguous(), persistent=False)
            else:
                weight = expert.time_in.weight[:, expert.width :]
                rows = F.linear(time_features(tau, expert.width).to(weight.dtype), weight, expert.time_in.bias)
                self.register_buffer('bias', rows, persistent=False)

    def rows(self, row: int | Tensor, norm: int) -> Rows:
        """What norm number `norm` takes at time `row`: a number -> [D] each, int64 [Q] -> [Q, D] each."""
        return self.scale[norm][row], self.shift[norm][row], self.gate[norm][row]
