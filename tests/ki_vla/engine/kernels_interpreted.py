"""Fused kernels in Triton's interpreter, against their twins and against formulas in float64.

Triton decides at its import whether kernels are interpreted, so test_kernels.py runs this file in a process of its own:
    TRITON_INTERPRET=1 pytest tests/ki_vla/engine/kernels_interpreted.py
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ki_vla.engine import kernels
from ki_vla.engine.kernels import LEAST

pytest.importorskip('triton')

Q, C, N, K, T, S, FIRST, ROW = 50, 128, 2, 32, 3, 70, 20, 1


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


class Case:
    """Inputs of all operations at a small size that divides by no tile but those it must."""

    def __init__(self, dtype: torch.dtype) -> None:
        generator = torch.Generator().manual_seed(0)

        def noise(*shape: int, scale: float = 1.0) -> Tensor:
            return torch.randn(*shape, generator=generator) * scale

        self.x, self.residual = (noise(Q, C, scale=2.0) + 0.3).to(dtype), noise(Q, 96).to(dtype)
        self.weight, self.bias = noise(96, C, scale=C**-0.5).to(dtype), noise(96).to(dtype)
        self.gate = noise(T, 96).to(dtype)
        self.qkv, self.gate_up = noise((N + 2) * K, C, scale=C**-0.5).to(dtype), noise(128, C, scale=C**-0.5).to(dtype)
        self.scale, self.shift, self.up_shift = 1 + noise(T, C, scale=0.3), noise(T, (N + 2) * K), noise(T, 128)
        self.out, self.out_shift = noise(7, C, scale=C**-0.5).to(dtype), noise(T, 7)
        self.given = (torch.arange(Q) < 4).int()
        self.noisy, self.previous = noise(Q, 7), noise(Q, 7)
        angle = noise(Q, K // 2)
        self.cos, self.sin = angle.cos(), angle.sin()
        self.queries = noise(Q, N * K, scale=0.5).to(dtype)
        self.keys, self.values = noise(S, K).to(dtype), noise(S, K).to(dtype)
        self.mask = torch.where(torch.rand(1, S, generator=generator) < 0.3, LEAST, 0.0)
        self.masks = torch.where(torch.rand(Q, S, generator=generator) < 0.3, LEAST, 0.0)

    def cache(self) -> tuple[Tensor, Tensor]:
        return self.keys.clone(), self.values.clone()


def both(case: Case, twin: Callable[..., Any], kernel: Callable[..., Any], *given: Any, **named: Any) -> None:
    """A kernel and its twin, what they return and what they write."""
    caches = case.cache(), case.cache()
    outputs = []
    for function, cache in zip((twin, kernel), caches, strict=True):
        found = function(
            *given, *(cache if named.get('writes') else ()), *named.get('after', ()), **named.get('by', {})
        )
        outputs.append([*(found if isinstance(found, tuple) else [found]), *cache])
    for expected, found in zip(*outputs, strict=True):
        # The interpreter cuts to bfloat16 where hardware rounds, which is one unit in the last of eight bits.
        assert relative(found, expected) < (1.2e-2 if case.x.dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=['float32', 'bfloat16'])
def test_kernels_compute_what_their_twins_compute(dtype: torch.dtype) -> None:
    c = Case(dtype)
    k = kernels
    sums = c.weight.float().sum(1)
    linear = k.linear_twin, k.linear_on_device
    both(c, *linear, c.x, c.weight, c.bias)
    both(c, *linear, c.x, c.weight, c.bias, sums, by={'gelu': True})
    both(c, *linear, c.x, c.weight, None, None, c.residual, c.gate, c.given, ROW)
    rows = (c.x.repeat(2, 1), c.weight, c.bias, None, c.residual.repeat(2, 1))
    both(c, *linear, *rows)  # more rows than one tile
    table = (c.scale, c.shift, c.given)
    both(c, k.qkv_twin, k.qkv_on_device, c.x, c.qkv, *table, c.cos, c.sin, writes=True, after=(FIRST, ROW))
    both(c, k.gated_up_twin, k.gated_up_on_device, c.x, c.gate_up, c.scale, c.up_shift, c.given, ROW)
    step = (c.x, c.out, c.scale, c.out_shift, c.given, c.noisy, c.previous, ROW, 0.1)
    both(c, k.field_twin, k.field_on_device, *step)
    for bias in (c.mask, c.masks):
        seen = (c.queries, c.keys, c.values, bias, N)
        both(c, k.attend_twin, k.attend_on_device, *seen)
        both(c, k.attend_parts_twin, k.attend_parts_on_device, *seen, 2)
    parts = k.attend_parts_twin(c.queries, c.keys, c.values, c.mask, N, 3)
    both(c, k.combine_twin, k.combine_on_device, *parts, c.queries)
    both(c, k.rotate_rows_twin, k.rotate_rows_on_device, c.x, F.linear(c.x, c.qkv), c.cos, c.sin, writes=True)
    only_keys = F.linear(c.x, c.qkv[N * K :])
    found = k.rotate_rows_on_device(c.x, only_keys, c.cos, c.sin, *c.cache())
    assert found.shape == (Q, 0)
    both(c, k.gate_rows_twin, k.gate_rows_on_device, c.x, F.linear(c.x, c.gate_up))


def test_products_in_fp8_stay_close_to_float32() -> None:
    c, k, cut = Case(torch.float32), kernels, 0.09  # the interpreter cuts to three bits where hardware rounds
    for norm in ('', 'rms', 'layer'):
        scale = float(k.normed(c.x, norm).abs().amax()) / k.FP8_MAX
        twin = k.quantise_rows_twin(c.x, scale, norm)
        assert relative(k.quantise_rows_on_device(c.x, scale, norm).float(), twin.float()) < cut
        assert relative(twin.float() * scale, k.normed(c.x, norm)) < 0.04
    rows = c.weight.float().abs().amax(1) / k.FP8_MAX
    weight, factor = k.in_fp8(c.weight / rows[:, None]), rows * scale
    found = k.linear_on_device(twin, weight, c.bias, residual=c.residual, factor=factor)
    assert relative(found, k.linear_twin(twin, weight, c.bias, residual=c.residual, factor=factor)) < 2e-6
    exact = k.normed(c.x, 'layer') @ c.weight.t() + c.bias + c.residual
    assert relative(found, exact) < 0.04
    hidden = F.linear(c.x, c.gate_up)
    twin = k.quantise_gated_twin(hidden, 0.05)
    assert relative(k.quantise_gated_on_device(hidden, 0.05).float(), twin.float()) < cut


def in_float64(c: Case) -> SimpleNamespace:
    """Some of the operations written down once more, as formulas."""
    x, given = c.x.double(), c.given[:, None] != 0
    rms = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    def adaptive(weight: Tensor, shift: Tensor) -> Tensor:
        scaled = rms * torch.where(given, c.scale[-1], c.scale[ROW]).double()
        return scaled @ weight.double().t() + torch.where(given, shift[-1], shift[ROW]).double()

    heads = adaptive(c.qkv, c.shift).view(Q, N + 2, K)
    one, two = heads[:, :N].chunk(2, -1)
    cos, sin = c.cos.double()[:, None], c.sin.double()[:, None]
    gate, up = adaptive(c.gate_up, c.up_shift).chunk(2, -1)
    logits = c.queries.double().view(-1, K) @ c.keys.double().t() + c.mask.double()
    normed = (x - x.mean(-1, keepdim=True)) * torch.rsqrt(x.var(-1, keepdim=True, unbiased=False) + 1e-6)
    return SimpleNamespace(
        linear=F.gelu(normed @ c.weight.double().t() + c.bias.double(), approximate='tanh'),
        qkv=(torch.cat([one * cos - two * sin, two * cos + one * sin], -1) * K**-0.5).flatten(1),
        gated_up=F.gelu(gate, approximate='tanh') * up,
        field=torch.where(given, c.previous, c.noisy - 0.1 * adaptive(c.out, c.out_shift)),
        attend=(logits.softmax(-1) @ c.values.double()).view(Q, -1),
    )


def computed(c: Case, how: str) -> SimpleNamespace:
    def of(name: str) -> Any:
        return getattr(kernels, f'{name}_{how}')

    sums = c.weight.float().sum(1)
    parts = of('attend_parts')(c.queries, c.keys, c.values, c.mask, N, 3)
    return SimpleNamespace(
        linear=of('linear')(c.x, c.weight, c.bias, sums, gelu=True),
        qkv=of('qkv')(c.x, c.qkv, c.scale, c.shift, c.given, c.cos, c.sin, *c.cache(), FIRST, ROW),
        gated_up=of('gated_up')(c.x, c.gate_up, c.scale, c.up_shift, c.given, ROW),
        field=of('field')(c.x, c.out, c.scale, c.out_shift, c.given, c.noisy, c.previous, ROW, 0.1),
        attend=of('combine')(*parts, c.queries),
    )


@pytest.mark.parametrize('how', ['twin', 'on_device'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=['float32', 'bfloat16'])
def test_kernels_and_twins_are_right_to_float64(how: str, dtype: torch.dtype) -> None:
    rounding = 5e-3 if how == 'twin' else 1.2e-2
    allowed = 2e-6 if dtype == torch.float32 else rounding
    c = Case(dtype)
    expected, found = in_float64(c), computed(c, how)
    for name, value in vars(found).items():
        assert relative(value, getattr(expected, name)) < allowed, name


def test_a_stretch_of_keys_that_nobody_sees_has_no_weight() -> None:
    c = Case(torch.float32)
    unseen = torch.zeros(1, S)
    unseen[:, :40] = LEAST
    expected = kernels.attend_twin(c.queries, c.keys[40:], c.values[40:], unseen[:, 40:], N)
    parts = kernels.attend_parts_on_device(c.queries, c.keys, c.values, unseen, N, 3)
    assert relative(kernels.combine_on_device(*parts, c.queries), expected) < 2e-6
