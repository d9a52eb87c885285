"""Fused kernels of the engine in Triton, each with the torch function that says what it computes beside it.

Every operation here is one of torch's (`torch.ops.ki.*`): on a CUDA device one launch of its kernel, anywhere else its
twin in torch. A machine without Triton takes the twins everywhere. Operations are therefore counted, compiled and
captured like any other, on tensors without memory too.

    linear      x @ W, layer norm in front, bias, GELU or a gated residual behind          vision, expert
    qkv         RMS norm, queries, keys and values, rotary positions, written to the cache  expert
    gated_up    RMS norm, gate and up, GELU                                                 expert
    field       RMS norm, last projection, Euler step                                       expert
    attend      one key/value head for all query heads, masked; split over keys or whole    expert, prefix
    combine     the parts of a split attention                                              expert
    rotate_rows RMS of a row, rotary positions, written to the cache; after a large product  prefix
    quantise_*  what a product in FP8 reads: behind a norm, or GELU(gate) * up             vision, prefix
    gate_rows   RMS of a row, GELU(gate) * up; after a large product                         prefix
    within_views torch's own attention, as the one launch that it is                         vision

What a norm multiplies is folded. Gemma's 1 + w and SigLIP's scale lie in W, the root mean square of a row factors out
of the product and is taken from the same read of x. Of adaptive norms there is a table with a row for each Euler step:
scales multiply x as it is read, shifts have gone through W beforehand (`bias`). Ten copies of W, their scales folded
in, would read as many bytes a step and take 5.6 GB.

tests/ki_vla/engine/test_kernels.py holds kernels to twins and float64 in Triton's interpreter, and compiles them for an
H100 on machines without one.

Shape legend: M rows, C inputs of a product, N outputs (or heads), T rows of a table of times, Q queries, S keys, K head
dim, P parts of the keys.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ki_vla.model.gemma import EPS


def _foreign_llvm() -> bool:
    """Whether Mesa's LLVM is in this process, as after drawing a scene without a GPU: Triton's own would end it."""
    try:
        return 'triton' not in sys.modules and 'libLLVM' in Path('/proc/self/maps').read_text(encoding='utf-8')
    except (OSError, ValueError):
        return False


try:
    if _foreign_llvm():
        raise ImportError('another LLVM is loaded')
    import triton
    import triton.language as tl
except ImportError:  # no wheel for this machine, or no place for it here: the twins compute
    triton = tl = None

HAS_TRITON = triton is not None
# One compiled kernel for all values of these: a new one for each Euler step would take seconds.
NUMBERS = ('M', 'row', 'last', 'first', 'R', 'S', 'size', 'out_scale', 'x_scale')
jit: Callable[[Any], Any] = (
    (lambda function: function) if not HAS_TRITON else triton.jit(do_not_specialize=list(NUMBERS))
)
FP8, FP8_MAX = torch.float8_e4m3fn, 448.0
LEAST = torch.finfo(torch.float32).min
PARTS = 16  # of the keys that 50 queries see: 7 tiles of rows times 16 fill the 132 processors of an H100
SMALL_M = 64  # up to so many rows weights are read once, by as many programs as there are


class Launch(NamedTuple):
    """How a kernel is launched: its grid, what is constant in it, warps and pipeline stages."""

    grid: tuple[int, ...]
    constants: dict[str, Any]
    warps: int = 4
    stages: int = 3


def run(kernel: Any, launch: Launch, *tensors: Any) -> None:
    """Launch on the device of the tensors; in Triton's interpreter on a CPU, products in float32."""
    on_cpu = next(each for each in tensors if isinstance(each, Tensor)).device.type == 'cpu'
    options = {} if on_cpu else {'num_warps': launch.warps, 'num_stages': launch.stages}
    kernel[launch.grid](*tensors, **launch.constants, F32=on_cpu, **options)


def operation(
    name: str,
    twin: Callable[..., Any],
    kernel: Callable[..., Any],
    empty: Callable[..., Any],
    mutates: tuple[str, ...] = (),
) -> Any:
    """A torch operation `ki::name`: the kernel on CUDA where there is Triton, else the twin.

    Args:
        name: of the operation.
        twin: the function in torch.
        kernel: the same by a launch.
        empty: the same without numbers: what its results look like.
        mutates: arguments that are written.
    """
    made = torch.library.custom_op(f'ki::{name}', twin, mutates_args=mutates)
    made.register_fake(empty)
    if HAS_TRITON:
        made.register_kernel('cuda')(kernel)
    return made


def _gelu(x: Tensor) -> Tensor:
    return F.gelu(x, approximate='tanh')


def _blocks(size: int, block: int) -> int:
    return -(-size // block)


# Helpers of kernels ---------------------------------------------------------------------------------------------------


@jit
def _tanh_gelu(x):  # type: ignore[no-untyped-def]
    """Tanh by exp, which no argument makes overflow."""
    t = 0.7978845608028654 * (x + 0.044715 * x * x * x)
    return 0.5 * x * (2.0 - 2.0 / (tl.exp(2.0 * t) + 1.0))


@jit
def _within_fp8(x):  # type: ignore[no-untyped-def]
    """Cut to what E4M3 can hold."""
    return tl.minimum(tl.maximum(x, -448.0), 448.0)


@jit
def _scales(scale, given, row, last, k, m, M, C: tl.constexpr):  # type: ignore[no-untyped-def]
    """What x [m, k] is multiplied by: row `last` of a table [T, C] for given actions, row `row` for others."""
    now = tl.load(scale + row * C + k)
    clean = tl.load(scale + last * C + k)
    is_given = tl.load(given + m, mask=m < M, other=0) != 0
    return tl.where(is_given[:, None], clean[None, :], now[None, :])


@jit
def _shifts(bias, given, row, last, n, m, M, N: tl.constexpr):  # type: ignore[no-untyped-def]
    """The same of a table [T, N] of outputs."""
    inside = n < N
    now = tl.load(bias + row * N + n, mask=inside, other=0.0)
    clean = tl.load(bias + last * N + n, mask=inside, other=0.0)
    is_given = tl.load(given + m, mask=m < M, other=0) != 0
    return tl.where(is_given[:, None], clean[None, :], now[None, :])


# linear ---------------------------------------------------------------------------------------------------------------


@jit
def linear_kernel(  # type: ignore[no-untyped-def]
    x, w, bias, column_sum, factor, residual, gate, given, out, M, row, last, out_scale,
    C: tl.constexpr, N: tl.constexpr, NORM: tl.constexpr, GELU: tl.constexpr, RESIDUAL: tl.constexpr,
    FACTOR: tl.constexpr, QUANTISE: tl.constexpr,
    GATE: tl.constexpr, BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, EPS: tl.constexpr,
    F32: tl.constexpr,
):  # fmt: skip
    """See `linear_twin`."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.program_id(1) * BM + tl.arange(0, BM)
    y = tl.zeros((BM, BN), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    for start in range(0, C, BC):
        k = start + tl.arange(0, BC)
        a = tl.load(x + m[:, None] * C + k[None, :], mask=(m[:, None] < M) & (k[None, :] < C), other=0.0)
        b = tl.load(w + n[None, :] * C + k[:, None], mask=(n[None, :] < N) & (k[:, None] < C), other=0.0)
        if NORM:
            f = a.to(tl.float32)
            total += tl.sum(f, 1)
            squares += tl.sum(f * f, 1)
        a = a.to(b.dtype)
        if F32:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        y = tl.dot(a, b, y)
    inside = n < N
    if NORM:
        mean = total / C
        deviation = 1.0 / tl.sqrt(squares / C - mean * mean + EPS)
        y = (y - mean[:, None] * tl.load(column_sum + n, mask=inside, other=0.0)[None, :]) * deviation[:, None]
    if FACTOR:
        y = y * tl.load(factor + n, mask=inside, other=0.0)[None, :]
    if BIAS:
        y += tl.load(bias + n, mask=inside, other=0.0).to(tl.float32)[None, :]
    if GELU:
        y = _tanh_gelu(y)
    where = m[:, None] * N + n[None, :]
    kept = (m[:, None] < M) & inside[None, :]
    if GATE:
        y = y * _shifts(gate, given, row, last, n, m, M, N).to(tl.float32)
    if RESIDUAL:
        y += tl.load(residual + where, mask=kept, other=0.0).to(tl.float32)
    if QUANTISE:
        y = _within_fp8(y * (1.0 / out_scale))
    tl.store(out + where, y.to(out.dtype.element_ty), mask=kept)


def linear_launch(M: int, C: int, N: int, **switches: bool) -> Launch:
    """Few rows: narrow tiles, so that many processors read weights. Many rows: square tiles for the tensor cores."""
    if M <= SMALL_M:
        BM, BN, BC, warps, stages = 64, 16, 64 if C < 128 else 128, 4, 4
    else:
        BM, BN, BC, warps, stages = 128, 64, 64, 4, 4
    constants = {'C': C, 'N': N, **switches, 'BM': BM, 'BN': BN, 'BC': BC, 'EPS': EPS}
    return Launch((_blocks(N, BN), _blocks(M, BM)), constants, warps, stages)


def linear_twin(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    column_sum: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    given: Tensor | None = None,
    row: int = 0,
    gelu: bool = False,
    factor: Tensor | None = None,
    out_scale: float = 0.0,
) -> Tensor:
    """Rows through one projection, in float32 from start to end.

    Args:
        x: [M, C].
        weight: [N, C], the scale of a layer norm folded in.
        bias: [N].
        column_sum: float32 [N], sums of `weight` over inputs: a layer norm without scale stands in front.
        residual: [M, N], to which the result is added.
        gate: table [T, N] that the result is multiplied by before; its row is `row`, for `given` rows the last one.
        given: int32 [M]; not 0 where an action is given. Needed with `gate`.
        row: see `gate`.
        gelu: with GELU behind.
        factor: float32 [N], for x and weight in FP8: the scale of x times those of the rows of the weight.
        out_scale: above 0, the result is written in FP8, divided by it.

    Returns:
        [M, N] in FP8, or in the dtype of the bias or residual, else in that of the weight.
    """
    y = F.linear(x.to(weight.dtype).float(), weight.float())
    if factor is not None:
        y = y * factor
    if column_sum is not None:
        mean = x.float().mean(-1, keepdim=True)
        variance = x.float().square().mean(-1, keepdim=True) - mean.square()
        y = (y - mean * column_sum) * torch.rsqrt(variance + EPS)
    if bias is not None:
        y = y + bias.float()
    if gelu:
        y = _gelu(y)
    if gate is not None and given is not None:
        y = y * torch.where(given[:, None] != 0, gate[-1], gate[row]).float()
    if residual is not None:
        y = y + residual.float()
    if out_scale:
        return in_fp8(y / out_scale)
    return y.to(_linear_dtype(weight, bias, residual))


def in_fp8(x: Tensor) -> Tensor:
    """As E4M3, cut to what it can hold."""
    return x.clamp(-FP8_MAX, FP8_MAX).to(FP8)


def _linear_dtype(weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> torch.dtype:
    if weight.dtype != FP8:
        return weight.dtype
    return next((each.dtype for each in (residual, bias) if each is not None), torch.bfloat16)


def linear_on_device(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    column_sum: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    given: Tensor | None = None,
    row: int = 0,
    gelu: bool = False,
    factor: Tensor | None = None,
    out_scale: float = 0.0,
) -> Tensor:
    """See `linear_twin`."""
    (M, C), N = x.shape, len(weight)
    dtype = FP8 if out_scale else _linear_dtype(weight, bias, residual)
    out = torch.empty(M, N, dtype=dtype, device=x.device)
    launch = linear_launch(
        M, C, N, NORM=column_sum is not None, GELU=gelu, RESIDUAL=residual is not None, GATE=gate is not None,
        BIAS=bias is not None,
        FACTOR=factor is not None, QUANTISE=out_scale > 0.0,
    )  # fmt: skip
    last = 0 if gate is None else len(gate) - 1
    optional = [x if each is None else each for each in (bias, column_sum, factor, residual, gate, given)]
    run(linear_kernel, launch, x, weight, *optional, out, M, row, last, out_scale)
    return out


# qkv ------------------------------------------------------------------------------------------------------------------


@jit
def qkv_kernel(  # type: ignore[no-untyped-def]
    x, w, scale, bias, given, cos, sin, q, k_cache, v_cache, M, row, last, first,
    C: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FACTOR: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BC: tl.constexpr, EPS: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """See `qkv_twin`."""
    # One program: a strip of the first half of one head, and the strip of the second half that turns with it.
    head = tl.program_id(0) // (K // 2 // BN)
    j = tl.program_id(0) % (K // 2 // BN) * BN + tl.arange(0, BN)
    n = head * K + j
    m = tl.arange(0, BM)
    y = tl.zeros((BM, BN), tl.float32)
    z = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    for start in range(0, C, BC):
        k = start + tl.arange(0, BC)
        f = tl.load(x + m[:, None] * C + k[None, :], mask=m[:, None] < M, other=0.0).to(tl.float32)
        squares += tl.sum(f * f, 1)
        b = tl.load(w + n[None, :] * C + k[:, None])
        d = tl.load(w + (n[None, :] + K // 2) * C + k[:, None])
        a = (f * _scales(scale, given, row, last, k, m, M, C)).to(b.dtype)
        if F32:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
            d = d.to(tl.float32)
        y = tl.dot(a, b, y)
        z = tl.dot(a, d, z)
    r = 1.0 / tl.sqrt(squares / C + EPS)
    y = y * r[:, None] + _shifts(bias, given, row, last, n, m, M, (N + 2) * K)
    z = z * r[:, None] + _shifts(bias, given, row, last, n + K // 2, m, M, (N + 2) * K)
    kept = m[:, None] < M
    type = q.dtype.element_ty
    if head > N:
        where = (first + m[:, None]) * K + j[None, :]
        tl.store(v_cache + where, y.to(type), mask=kept)
        tl.store(v_cache + where + K // 2, z.to(type), mask=kept)
    else:
        # Rounded before they are turned, as heads are that were written down in between.
        y = y.to(type).to(tl.float32)
        z = z.to(type).to(tl.float32)
        turn = m[:, None] * (K // 2) + j[None, :]
        c = tl.load(cos + turn, mask=kept, other=0.0)
        s = tl.load(sin + turn, mask=kept, other=0.0)
        one = y * c - z * s
        two = z * c + y * s
        if head < N:
            where = m[:, None] * (N * K) + n[None, :]
            tl.store(q + where, (one * FACTOR).to(type), mask=kept)
            tl.store(q + where + K // 2, (two * FACTOR).to(type), mask=kept)
        else:
            where = (first + m[:, None]) * K + j[None, :]
            tl.store(k_cache + where, one.to(type), mask=kept)
            tl.store(k_cache + where + K // 2, two.to(type), mask=kept)


def qkv_launch(C: int, N: int, K: int) -> Launch:
    """A program for 16 pairs of columns: 80 programs at full size."""
    constants: dict[str, Any] = {
        'C': C,
        'N': N,
        'K': K,
        'FACTOR': K**-0.5,
        'BM': 64,
        'BN': min(16, K // 2),
        'BC': 64,
        'EPS': EPS,
    }
    return Launch(((N + 2) * (K // 2 // constants['BN']),), constants, 4, 4)


def qkv_twin(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    given: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    first: int,
    row: int,
) -> Tensor:
    """Queries, rotated and scaled; keys (rotated) and values are written to rows `first`... of a layer's cache.

    Args:
        x: [Q, C].
        weight: [(N + 2) K, C]: query heads, the key head, the value head.
        scale: float32 table [T, C] of 1 + scale.
        bias: float32 table [T, (N + 2) K]: shifts of the norm, through the weight.
        given: int32 [Q], see `linear_twin`.
        cos: rotary table, float32 [Q, K / 2].
        sin: the same.
        k_cache: [S, K].
        v_cache: [S, K].
        first: the first row to be written.
        row: of the tables.

    Returns:
        [Q, N K].
    """
    K = k_cache.shape[1]
    y = _after_rms(x, weight, scale, bias, given, row).to(x.dtype).unflatten(-1, (-1, K))
    half_1, half_2 = y[:, :-1].float().chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    turned = torch.cat([half_1 * c - half_2 * s, half_2 * c + half_1 * s], -1)
    k_cache[first : first + len(x)] = turned[:, -1].to(x.dtype)
    v_cache[first : first + len(x)] = y[:, -1]
    queries: Tensor = (turned[:, :-1] * K**-0.5).to(x.dtype).flatten(1)
    return queries


def _after_rms(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, given: Tensor, row: int) -> Tensor:
    """Float32 [M, N]: an adaptive RMS norm and a projection."""
    is_given = given[:, None] != 0
    scaled = (x.float() * torch.where(is_given, scale[-1], scale[row])).to(weight.dtype)
    y = F.linear(scaled.float(), weight.float()) * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)
    return y + torch.where(is_given, bias[-1], bias[row])


def qkv_on_device(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    given: Tensor,
    cos: Tensor,
    sin: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    first: int,
    row: int,
) -> Tensor:
    """See `qkv_twin`."""
    (M, C), K = x.shape, k_cache.shape[1]
    N = len(weight) // K - 2
    q = torch.empty(M, N * K, dtype=x.dtype, device=x.device)
    tensors = (x, weight, scale, bias, given, cos, sin, q, k_cache, v_cache)
    run(qkv_kernel, qkv_launch(C, N, K), *tensors, M, row, len(scale) - 1, first)
    return q


# gated_up -------------------------------------------------------------------------------------------------------------


@jit
def gated_up_kernel(  # type: ignore[no-untyped-def]
    x, w, scale, bias, given, out, M, row, last,
    C: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, EPS: tl.constexpr,
    F32: tl.constexpr,
):  # fmt: skip
    """See `gated_up_twin`."""
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    m = tl.arange(0, BM)
    gate = tl.zeros((BM, BN), tl.float32)
    up = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    for start in range(0, C, BC):
        k = start + tl.arange(0, BC)
        f = tl.load(x + m[:, None] * C + k[None, :], mask=m[:, None] < M, other=0.0).to(tl.float32)
        squares += tl.sum(f * f, 1)
        b = tl.load(w + n[None, :] * C + k[:, None])
        d = tl.load(w + (n[None, :] + N) * C + k[:, None])
        a = (f * _scales(scale, given, row, last, k, m, M, C)).to(b.dtype)
        if F32:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
            d = d.to(tl.float32)
        gate = tl.dot(a, b, gate)
        up = tl.dot(a, d, up)
    r = 1.0 / tl.sqrt(squares / C + EPS)
    gate = gate * r[:, None] + _shifts(bias, given, row, last, n, m, M, 2 * N)
    up = up * r[:, None] + _shifts(bias, given, row, last, n + N, m, M, 2 * N)
    y = _tanh_gelu(gate) * up
    tl.store(out + m[:, None] * N + n[None, :], y.to(out.dtype.element_ty), mask=m[:, None] < M)


def gated_up_launch(C: int, N: int) -> Launch:
    """A program for 32 columns of gate and up: 128 programs at full size."""
    constants = {'C': C, 'N': N, 'BM': 64, 'BN': 32, 'BC': 64, 'EPS': EPS}
    return Launch((N // 32,), constants, 4, 4)


def gated_up_twin(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, given: Tensor, row: int) -> Tensor:
    """The hidden layer of a gated MLP behind an adaptive norm: GELU(gate) * up.

    Args:
        x: [Q, C].
        weight: [2 N, C]: gate, then up.
        scale: float32 table [T, C] of 1 + scale, see `qkv_twin`.
        bias: float32 table [T, 2 N], see `qkv_twin`.
        given: int32 [Q], see `linear_twin`.
        row: of the tables.

    Returns:
        [Q, N].
    """
    gate, up = _after_rms(x, weight, scale, bias, given, row).chunk(2, -1)
    return (_gelu(gate) * up).to(x.dtype)


def gated_up_on_device(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, given: Tensor, row: int) -> Tensor:
    """See `gated_up_twin`."""
    (M, C), N = x.shape, len(weight) // 2
    out = torch.empty(M, N, dtype=x.dtype, device=x.device)
    run(gated_up_kernel, gated_up_launch(C, N), x, weight, scale, bias, given, out, M, row, len(scale) - 1)
    return out


# field ----------------------------------------------------------------------------------------------------------------


@jit
def field_kernel(  # type: ignore[no-untyped-def]
    x, w, scale, bias, given, noisy, previous, out, M, row, last, size,
    C: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BC: tl.constexpr, EPS: tl.constexpr,
    F32: tl.constexpr,
):  # fmt: skip
    """See `field_twin`."""
    n = tl.arange(0, BN)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    y = tl.zeros((BM, BN), tl.float32)
    squares = tl.zeros((BM,), tl.float32)
    for start in range(0, C, BC):
        k = start + tl.arange(0, BC)
        f = tl.load(x + m[:, None] * C + k[None, :], mask=m[:, None] < M, other=0.0).to(tl.float32)
        squares += tl.sum(f * f, 1)
        b = tl.load(w + n[None, :] * C + k[:, None], mask=n[None, :] < N, other=0.0)
        a = (f * _scales(scale, given, row, last, k, m, M, C)).to(b.dtype)
        if F32:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        y = tl.dot(a, b, y)
    y = y / tl.sqrt(squares / C + EPS)[:, None] + _shifts(bias, given, row, last, n, m, M, N)
    y = y.to(w.dtype.element_ty).to(tl.float32)  # the field has the precision of the weights
    where = m[:, None] * N + n[None, :]
    kept = (m[:, None] < M) & (n[None, :] < N)
    y = tl.load(noisy + where, mask=kept, other=0.0) - size * y
    is_given = tl.load(given + m, mask=m < M, other=0) != 0
    y = tl.where(is_given[:, None], tl.load(previous + where, mask=kept, other=0.0), y)
    tl.store(out + where, y, mask=kept)


def field_launch(M: int, C: int, N: int) -> Launch:
    """Sixteen rows a program."""
    constants = {'C': C, 'N': N, 'BM': 16, 'BN': max(16, 1 << (N - 1).bit_length()), 'BC': 64, 'EPS': EPS}
    return Launch((_blocks(M, 16),), constants, 4, 4)


def field_twin(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    given: Tensor,
    noisy: Tensor,
    previous: Tensor,
    row: int,
    size: float,
) -> Tensor:
    """One Euler step of `size` along the field that x gives; given actions are those of the old chunk.

    Args:
        x: [Q, C].
        weight: [A, C].
        scale: float32 table [T, C] of 1 + scale.
        bias: float32 table [T, A], see `qkv_twin`; the projection's own bias is in it.
        given: int32 [Q], see `linear_twin`.
        noisy: float32 [Q, A].
        previous: the same of the old chunk.
        row: of the tables.
        size: of the step.

    Returns:
        float32 [Q, A].
    """
    field = _after_rms(x, weight, scale, bias, given, row).to(weight.dtype).float()
    return torch.where(given[:, None] != 0, previous, noisy - size * field)


def field_on_device(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    bias: Tensor,
    given: Tensor,
    noisy: Tensor,
    previous: Tensor,
    row: int,
    size: float,
) -> Tensor:
    """See `field_twin`."""
    (M, C), N = x.shape, len(weight)
    out = torch.empty_like(noisy)
    tensors = (x, weight, scale, bias, given, noisy, previous, out)
    run(field_kernel, field_launch(M, C, N), *tensors, M, row, len(scale) - 1, size)
    return out


# attend, combine ------------------------------------------------------------------------------------------------------


@jit
def attend_kernel(  # type: ignore[no-untyped-def]
    q, k_cache, v_cache, bias, out, most, total, R, S,
    N: tl.constexpr, K: tl.constexpr, SPLIT: tl.constexpr, MASKS: tl.constexpr,
    BM: tl.constexpr, BS: tl.constexpr, BLOCKS: tl.constexpr,
    F32: tl.constexpr,
):  # fmt: skip
    """See `attend_twin` and `attend_parts_twin`."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, K)
    a = tl.load(q + r[:, None] * K + d[None, :], mask=r[:, None] < R, other=0.0)
    mixed = tl.zeros((BM, K), tl.float32)
    high = tl.full((BM,), float('-inf'), tl.float32)
    weight = tl.zeros((BM,), tl.float32)
    if F32:
        a = a.to(tl.float32)
    for block in range(BLOCKS):
        s = (tl.program_id(1) * BLOCKS + block) * BS + tl.arange(0, BS)
        k = tl.load(k_cache + s[None, :] * K + d[:, None], mask=s[None, :] < S, other=0.0)
        if F32:
            k = k.to(tl.float32)
        logits = tl.dot(a, k)
        if MASKS:
            seen = (s < S)[None, :] & (r < R)[:, None]
            logits += tl.load(bias + (r // N)[:, None] * S + s[None, :], mask=seen, other=0.0)
        else:
            logits += tl.load(bias + s, mask=s < S, other=0.0)[None, :]
        logits = tl.where((s < S)[None, :], logits, float('-inf'))
        higher = tl.maximum(high, tl.max(logits, 1))
        p = tl.exp(logits - higher[:, None])
        shrink = tl.exp(high - higher)
        weight = weight * shrink + tl.sum(p, 1)
        v = tl.load(v_cache + s[:, None] * K + d[None, :], mask=s[:, None] < S, other=0.0)
        p = p.to(v.dtype)
        if F32:
            p = p.to(tl.float32)
            v = v.to(tl.float32)
        mixed = tl.dot(p, v, mixed * shrink[:, None])
        high = higher
    kept = r < R
    if SPLIT:
        row = tl.program_id(1) * R + r
        tl.store(out + row[:, None] * K + d[None, :], mixed, mask=kept[:, None])
        tl.store(most + row, high, mask=kept)
        tl.store(total + row, weight, mask=kept)
    else:
        mixed = mixed / weight[:, None]
        tl.store(out + r[:, None] * K + d[None, :], mixed.to(out.dtype.element_ty), mask=kept[:, None])


def attend_launch(rows: int, S: int, N: int, K: int, parts: int, masks: bool = False) -> tuple[Launch, int, int]:
    """The launch, the keys of a part, and the number of parts; `masks`: queries differ in what they see."""
    BS = 32 if parts > 1 else 64
    part = _blocks(_blocks(S, BS), parts) * BS
    parts = _blocks(S, part)
    constants = {'N': N, 'K': K, 'SPLIT': parts > 1, 'MASKS': masks, 'BM': 64, 'BS': BS, 'BLOCKS': part // BS}
    return Launch((_blocks(rows, 64), parts), constants, 4 if K < 256 else 8, 2), part, parts


def attend_twin(q: Tensor, k_cache: Tensor, v_cache: Tensor, bias: Tensor, heads: int) -> Tensor:
    """Attention of all heads to one head of keys and values, whole.

    Args:
        q: scaled and rotated, [Q, N K].
        k_cache: [S, K].
        v_cache: [S, K].
        bias: float32 [1, S] or [Q, S]: 0, or the least float where a key is not seen.
        heads: N.

    Returns:
        [Q, N K].
    """
    rows = q.reshape(-1, k_cache.shape[1]).float()
    logits = rows @ k_cache.float().t() + (bias if len(bias) == 1 else bias.repeat_interleave(heads, 0))
    return (logits.softmax(-1).to(q.dtype).float() @ v_cache.float()).to(q.dtype).view_as(q)


def attend_on_device(q: Tensor, k_cache: Tensor, v_cache: Tensor, bias: Tensor, heads: int) -> Tensor:
    """See `attend_twin`."""
    (S, K), rows = k_cache.shape, q.numel() // k_cache.shape[1]
    out = torch.empty_like(q)
    launch, _, _ = attend_launch(rows, S, heads, K, 1, len(bias) > 1)
    run(attend_kernel, launch, q, k_cache, v_cache, bias, out, out, out, rows, S)
    return out


def attend_parts_twin(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, bias: Tensor, heads: int, parts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_twin` over `parts` stretches of the keys, for few queries: sums that `combine` puts together.

    Returns:
        Weighted sums of values [P, Q N, K], the largest logit of each [P, Q N], the sum of weights of each [P, Q N];
        float32.
    """
    (S, K), N = k_cache.shape, heads
    rows = q.reshape(-1, K).float()
    logits = rows @ k_cache.float().t() + (bias if len(bias) == 1 else bias.repeat_interleave(N, 0))
    _, part, _ = attend_launch(len(rows), S, N, K, parts)
    found = []
    for stretch, values in zip(logits.split(part, 1), v_cache.split(part), strict=True):
        most = stretch.amax(1)
        p = (stretch - most[:, None]).exp()
        found.append((p.to(q.dtype).float() @ values.float(), most, p.sum(1)))
    mixed, most, total = (torch.stack(each) for each in zip(*found, strict=True))
    return mixed, most, total


def attend_parts_on_device(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, bias: Tensor, heads: int, parts: int
) -> tuple[Tensor, Tensor, Tensor]:
    """See `attend_parts_twin`."""
    (S, K), rows = k_cache.shape, q.numel() // k_cache.shape[1]
    launch, _, parts = attend_launch(rows, S, heads, K, parts, len(bias) > 1)
    launch = launch._replace(constants=launch.constants | {'SPLIT': True})
    mixed, most, total = _parts_like(q, parts, rows, K)
    run(attend_kernel, launch, q, k_cache, v_cache, bias, mixed, most, total, rows, S)
    return mixed, most, total


def _parts_like(q: Tensor, parts: int, rows: int, K: int) -> tuple[Tensor, Tensor, Tensor]:
    mixed = torch.empty(parts, rows, K, dtype=torch.float32, device=q.device)
    return mixed, mixed.new_empty(parts, rows), mixed.new_empty(parts, rows)


@jit
def combine_kernel(  # type: ignore[no-untyped-def]
    mixed, most, total, out, R,
    P: tl.constexpr, K: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """See `combine_twin`."""
    r = tl.program_id(0)
    d = tl.arange(0, K)
    high = tl.load(most + r)
    for p in tl.static_range(1, P):
        high = tl.maximum(high, tl.load(most + p * R + r))
    sum = tl.zeros((K,), tl.float32)
    weight = 0.0
    for p in tl.static_range(0, P):
        share = tl.exp(tl.load(most + p * R + r) - high)
        sum += share * tl.load(mixed + (p * R + r) * K + d)
        weight += share * tl.load(total + p * R + r)
    tl.store(out + r * K + d, (sum / weight).to(out.dtype.element_ty))


def combine_launch(rows: int, parts: int, K: int) -> Launch:
    """A program a row."""
    return Launch((rows,), {'P': parts, 'K': K}, 2, 1)


def combine_twin(mixed: Tensor, most: Tensor, total: Tensor, like: Tensor) -> Tensor:
    """The attention whose parts these are, in shape and dtype of the queries `like`."""
    share = (most - most.amax(0)).exp()
    whole = (share[..., None] * mixed).sum(0) / (share * total).sum(0)[:, None]
    return whole.to(like.dtype).view_as(like)


def combine_on_device(mixed: Tensor, most: Tensor, total: Tensor, like: Tensor) -> Tensor:
    """See `combine_twin`."""
    P, rows, K = mixed.shape
    out = torch.empty_like(like)
    run(combine_kernel, combine_launch(rows, P, K), mixed, most, total, out, rows)
    return out


# rotate_rows, gate_rows -----------------------------------------------------------------------------------------------


@jit
def rotate_rows_kernel(  # type: ignore[no-untyped-def]
    x, heads, cos, sin, q, k_cache, v_cache,
    C: tl.constexpr, BC: tl.constexpr, N: tl.constexpr, K: tl.constexpr, FACTOR: tl.constexpr, NORM: tl.constexpr,
    EPS: tl.constexpr,
    F32: tl.constexpr,
):  # fmt: skip
    """See `rotate_rows_twin`."""
    m = tl.program_id(0)
    k = tl.arange(0, BC)
    f = tl.load(x + m * C + k, mask=k < C, other=0.0).to(tl.float32)
    r = 1.0
    if NORM:
        r = 1.0 / tl.sqrt(tl.sum(f * f) / C + EPS)
    j = tl.arange(0, K // 2)
    c = tl.load(cos + m * (K // 2) + j)
    s = tl.load(sin + m * (K // 2) + j)
    type = k_cache.dtype.element_ty
    for head in tl.static_range(0, N + 2):
        where = m * ((N + 2) * K) + head * K + j
        y = (tl.load(heads + where).to(tl.float32) * r).to(type)
        z = (tl.load(heads + where + K // 2).to(tl.float32) * r).to(type)
        if head == N + 1:
            tl.store(v_cache + m * K + j, y)
            tl.store(v_cache + m * K + j + K // 2, z)
        else:
            y = y.to(tl.float32)
            z = z.to(tl.float32)
            one = y * c - z * s
            two = z * c + y * s
            if head == N:
                tl.store(k_cache + m * K + j, one.to(type))
                tl.store(k_cache + m * K + j + K // 2, two.to(type))
            else:
                to = m * (N * K) + head * K + j
                tl.store(q + to, (one * FACTOR).to(type))
                tl.store(q + to + K // 2, (two * FACTOR).to(type))


def rotate_rows_launch(M: int, C: int, N: int, K: int, norm: bool = True) -> Launch:
    """A program a row."""
    constants = {'NORM': norm, 'C': C, 'BC': 1 << (C - 1).bit_length(), 'N': N, 'K': K, 'FACTOR': K**-0.5, 'EPS': EPS}
    return Launch((M,), constants, 4, 1)


def rotate_rows_twin(
    x: Tensor, heads: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, norm: bool = True
) -> Tensor:
    """What is left of `qkv_twin` behind a large product with an RMS norm in front, whose scale the weight has.

    Args:
        x: [M, C], what the norm is of.
        heads: [M, (N + 2) K], x @ W without the norm.
        cos: rotary table, float32 [M, K / 2].
        sin: the same.
        k_cache: [at least M, K]; rows 0... are written.
        v_cache: the same.
        norm: whether the norm is still to be taken.

    Returns:
        Queries [M, N K], N of which there may be none.
    """
    M, K = len(x), k_cache.shape[1]
    r = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS) if norm else 1.0
    y = (heads.float() * r).to(x.dtype).unflatten(-1, (-1, K))
    half_1, half_2 = y[:, :-1].float().chunk(2, -1)
    c, s = cos[:, None], sin[:, None]
    turned = torch.cat([half_1 * c - half_2 * s, half_2 * c + half_1 * s], -1)
    k_cache[:M] = turned[:, -1].to(x.dtype)
    v_cache[:M] = y[:, -1]
    queries: Tensor = (turned[:, :-1] * K**-0.5).to(x.dtype).flatten(1)
    return queries


def rotate_rows_on_device(
    x: Tensor, heads: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, v_cache: Tensor, norm: bool = True
) -> Tensor:
    """See `rotate_rows_twin`."""
    (M, C), K = x.shape, k_cache.shape[1]
    N = heads.shape[1] // K - 2
    q = torch.empty(M, N * K, dtype=x.dtype, device=x.device)
    launch = rotate_rows_launch(M, C, N, K, norm)
    run(rotate_rows_kernel, launch, x, heads, cos, sin, q if N else k_cache, k_cache, v_cache)
    return q


@jit
def gate_rows_kernel(  # type: ignore[no-untyped-def]
    x, hidden, out,
    C: tl.constexpr, BC: tl.constexpr, N: tl.constexpr, BN: tl.constexpr, EPS: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """See `gate_rows_twin`."""
    m = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    k = tl.arange(0, BC)
    f = tl.load(x + m * C + k, mask=k < C, other=0.0).to(tl.float32)
    r = 1.0 / tl.sqrt(tl.sum(f * f) / C + EPS)
    gate = tl.load(hidden + m * (2 * N) + n, mask=n < N, other=0.0).to(tl.float32) * r
    up = tl.load(hidden + m * (2 * N) + N + n, mask=n < N, other=0.0).to(tl.float32) * r
    tl.store(out + m * N + n, (_tanh_gelu(gate) * up).to(out.dtype.element_ty), mask=n < N)


def gate_rows_launch(M: int, C: int, N: int) -> Launch:
    """Up to 4096 columns of a row a program."""
    BN = min(4096, 1 << (N - 1).bit_length())
    return Launch((_blocks(N, BN), M), {'C': C, 'BC': 1 << (C - 1).bit_length(), 'N': N, 'BN': BN, 'EPS': EPS}, 8, 1)


def gate_rows_twin(x: Tensor, hidden: Tensor) -> Tensor:
    """What is left of `gated_up_twin` behind a large product: GELU(gate) * up of x [M, C] and x @ W [M, 2 N]."""
    r = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + EPS)
    gate, up = (hidden.float() * r).chunk(2, -1)
    return (_gelu(gate) * up).to(x.dtype)


def gate_rows_on_device(x: Tensor, hidden: Tensor) -> Tensor:
    """See `gate_rows_twin`."""
    (M, C), N = x.shape, hidden.shape[1] // 2
    out = torch.empty(M, N, dtype=x.dtype, device=x.device)
    run(gate_rows_kernel, gate_rows_launch(M, C, N), x, hidden, out)
    return out


@jit
def quantise_rows_kernel(  # type: ignore[no-untyped-def]
    x, out, x_scale,
    C: tl.constexpr, BC: tl.constexpr, RMS: tl.constexpr, LAYER: tl.constexpr, EPS: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """See `quantise_rows_twin`."""
    m = tl.program_id(0)
    k = tl.arange(0, BC)
    f = tl.load(x + m * C + k, mask=k < C, other=0.0).to(tl.float32)
    if LAYER:
        f = tl.where(k < C, f - tl.sum(f) / C, 0.0)
    if LAYER or RMS:
        f = f / tl.sqrt(tl.sum(f * f) / C + EPS)
    tl.store(out + m * C + k, _within_fp8(f / x_scale).to(out.dtype.element_ty), mask=k < C)


def quantise_rows_launch(M: int, C: int, norm: str) -> Launch:
    """A program a row."""
    constants = {'C': C, 'BC': 1 << (C - 1).bit_length(), 'RMS': norm == 'rms', 'LAYER': norm == 'layer', 'EPS': EPS}
    return Launch((M,), constants, 4, 1)


def quantise_rows_twin(x: Tensor, scale: float, norm: str) -> Tensor:
    """Rows [M, C] in FP8, divided by a scale that calibration found, behind a norm without weights.

    Args:
        x: the rows.
        scale: the largest value there was, over the largest of FP8.
        norm: 'rms', 'layer' or ''.
    """
    return in_fp8(normed(x, norm) / scale)


def normed(x: Tensor, norm: str) -> Tensor:
    """Rows in float32 behind a norm without weights: 'rms', 'layer' or ''."""
    x = x.float()
    if norm == 'layer':
        x = x - x.mean(-1, keepdim=True)
    return x if not norm else x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS)


def quantise_rows_on_device(x: Tensor, scale: float, norm: str) -> Tensor:
    """See `quantise_rows_twin`."""
    M, C = x.shape
    out = torch.empty(M, C, dtype=FP8, device=x.device)
    run(quantise_rows_kernel, quantise_rows_launch(M, C, norm), x, out, scale)
    return out


@jit
def quantise_gated_kernel(  # type: ignore[no-untyped-def]
    hidden, out, x_scale,
    N: tl.constexpr, BN: tl.constexpr, F32: tl.constexpr,
):  # fmt: skip
    """See `quantise_gated_twin`."""
    m = tl.program_id(1)
    n = tl.program_id(0) * BN + tl.arange(0, BN)
    gate = tl.load(hidden + m * (2 * N) + n, mask=n < N, other=0.0).to(tl.float32)
    up = tl.load(hidden + m * (2 * N) + N + n, mask=n < N, other=0.0).to(tl.float32)
    y = _within_fp8(_tanh_gelu(gate) * up / x_scale)
    tl.store(out + m * N + n, y.to(out.dtype.element_ty), mask=n < N)


def quantise_gated_launch(M: int, N: int) -> Launch:
    """Up to 4096 columns of a row a program."""
    BN = min(4096, 1 << (N - 1).bit_length())
    return Launch((_blocks(N, BN), M), {'N': N, 'BN': BN}, 8, 1)


def quantise_gated_twin(hidden: Tensor, scale: float) -> Tensor:
    """GELU(gate) * up of [M, 2 N], in FP8 and divided by a scale: [M, N]."""
    gate, up = hidden.float().chunk(2, -1)
    return in_fp8(_gelu(gate) * up / scale)


def quantise_gated_on_device(hidden: Tensor, scale: float) -> Tensor:
    """See `quantise_gated_twin`."""
    M, N = hidden.shape[0], hidden.shape[1] // 2
    out = torch.empty(M, N, dtype=FP8, device=hidden.device)
    run(quantise_gated_kernel, quantise_gated_launch(M, N), hidden, out, scale)
    return out


def attend_views(heads: Tensor, views: int, count: int) -> Tensor:
    """Full attention within each view: torch's own kernel (flash attention on a GPU, one launch) on packed heads.

    Args:
        heads: [V N, 3 D]: queries, keys, values.
        views: V.
        count: heads.

    Returns:
        [V N, D].
    """
    D = heads.shape[1] // 3
    q, k, v = heads.view(views, -1, 3, count, D // count).permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, D)


# The operations -------------------------------------------------------------------------------------------------------


def _rows_of_weight(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    column_sum: Tensor | None = None,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    given: Tensor | None = None,
    row: int = 0,
    gelu: bool = False,
    factor: Tensor | None = None,
    out_scale: float = 0.0,
) -> Tensor:
    dtype = FP8 if out_scale else _linear_dtype(weight, bias, residual)
    return weight.new_empty(len(x), len(weight), dtype=dtype)


def _rows_in_fp8(x: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(x, dtype=FP8)


def _half_in_fp8(hidden: Tensor, *_: Any) -> Tensor:
    return hidden.new_empty(len(hidden), hidden.shape[1] // 2, dtype=FP8)


def _queries_alone(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_empty(len(x), len(weight) - 2 * rest[5].shape[1])


def _half_of_weight(x: Tensor, weight: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x), len(weight) // 2)


def _like_noisy(
    x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor, given: Tensor, noisy: Tensor, *_: Any
) -> Tensor:
    return torch.empty_like(noisy)


def _like_first(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q)


def _in_parts(q: Tensor, k_cache: Tensor, v_cache: Tensor, bias: Tensor, heads: int, parts: int) -> tuple[Tensor, ...]:
    (S, K), rows = k_cache.shape, q.numel() // k_cache.shape[1]
    return _parts_like(q, attend_launch(rows, S, heads, K, parts)[2], rows, K)


def _like_last(mixed: Tensor, most: Tensor, total: Tensor, like: Tensor) -> Tensor:
    return torch.empty_like(like)


def _queries_of_rows(x: Tensor, heads: Tensor, cos: Tensor, sin: Tensor, k_cache: Tensor, *_: Any) -> Tensor:
    return x.new_empty(len(x), heads.shape[1] - 2 * k_cache.shape[1])


def _half_of_rows(x: Tensor, hidden: Tensor) -> Tensor:
    return x.new_empty(len(x), hidden.shape[1] // 2)


def _third_of_rows(heads: Tensor, *_: Any) -> Tensor:
    return heads.new_empty(len(heads), heads.shape[1] // 3)


CACHES = ('k_cache', 'v_cache')
linear = operation('linear', linear_twin, linear_on_device, _rows_of_weight)
qkv = operation('qkv', qkv_twin, qkv_on_device, _queries_alone, CACHES)
gated_up = operation('gated_up', gated_up_twin, gated_up_on_device, _half_of_weight)
field = operation('field', field_twin, field_on_device, _like_noisy)
attend = operation('attend', attend_twin, attend_on_device, _like_first)
attend_parts = operation('attend_parts', attend_parts_twin, attend_parts_on_device, _in_parts)
combine = operation('combine', combine_twin, combine_on_device, _like_last)
rotate_rows = operation('rotate_rows', rotate_rows_twin, rotate_rows_on_device, _queries_of_rows, CACHES)
gate_rows = operation('gate_rows', gate_rows_twin, gate_rows_on_device, _half_of_rows)
quantise_rows = operation('quantise_rows', quantise_rows_twin, quantise_rows_on_device, _rows_in_fp8)
quantise_gated = operation('quantise_gated', quantise_gated_twin, quantise_gated_on_device, _half_in_fp8)
within_views = operation('within_views', attend_views, attend_views, _third_of_rows)
