"""The Gemma layer and the backbone in segments. Its numbers are compared with transformers in tests/parity."""

from __future__ import annotations

import torch

from ki_vla.model import masks
from ki_vla.model.config import GemmaConfig
from ki_vla.model.gemma import Backbone, Context, RMSNorm, rms, rope_table, rotate

CONFIG = GemmaConfig(width=24, depth=3, mlp=32, heads=4, kv_heads=2, head_dim=8)


def _backbone() -> Backbone:
    backbone = Backbone(CONFIG)
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return backbone


def test_a_sequence_in_two_segments_is_the_sequence_in_one() -> None:
    """Causal tokens after a prefix, read from its keys and values, against one pass under one square mask."""
    backbone, S, T = _backbone(), 5, 3
    x = torch.randn(2, S + T, 24)
    rows = torch.arange(S)[None].expand(2, -1)
    mask, positions = torch.ones(2, S, dtype=torch.bool), torch.arange(S)[None].expand(2, -1)
    keys, values, first, _ = backbone.prefix(x[:, :S], mask, positions, rows)
    context = Context(keys, values, mask[:, None])
    later = masks.positions_after(masks.lengths(mask), T)
    second, _, _ = backbone.segment(x[:, None, S:], later, context, masks.causal(T))

    empty = tuple(torch.zeros(2, 0, 2, 8) for _ in range(3))
    square = masks.everyone(S + T) & ((torch.arange(S + T)[None] < S) | masks.causal(S + T)[0])[None]
    whole, _, _ = backbone.segment(
        x[:, None], torch.arange(S + T)[None].expand(2, -1), Context(empty, empty, torch.ones(2, 1, 0).bool()), square
    )
    assert torch.allclose(torch.cat([first, second[:, 0]], dim=1), whole[:, 0], atol=1e-5)


def test_only_the_rows_that_are_wanted_are_computed_and_they_are_the_same() -> None:
    backbone = _backbone()
    x, mask = torch.randn(2, 5, 24), torch.ones(2, 5, dtype=torch.bool)
    positions = masks.positions(mask)
    keys, values, everything, _ = backbone.prefix(x, mask, positions, None)
    some_keys, some_values, some, _ = backbone.prefix(x, mask, positions, torch.tensor([[4, 1], [0, 2]]))
    none = backbone.prefix(x, mask, positions, torch.zeros(2, 0, dtype=torch.int64))[2]
    assert none is None
    assert torch.allclose(some[1], everything[1, [0, 2]], atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(keys + values, some_keys + some_values, strict=True))


def test_what_passes_after_a_layer_is_what_keys_and_values_of_the_next_are_made_of() -> None:
    backbone = _backbone()
    x, mask = torch.randn(2, 5, 24), torch.ones(2, 5, dtype=torch.bool)
    positions = masks.positions(mask)
    keys, values, everything, passed = backbone.prefix(x, mask, positions, None, after=(1,))
    assert [each.shape for each in passed] == [x.shape]
    plain = backbone.prefix(x, mask, positions, None)
    assert plain[3] == ()
    assert torch.equal(plain[2], everything)
    assert all(torch.equal(a, b) for a, b in zip(keys + values, plain[0] + plain[1], strict=True))

    # The norms of `_backbone` differ; where they are alike, what has passed gives the next layer's values.
    backbone.norm.load_state_dict(backbone.layers[1].input_norm.state_dict())
    (passed_BSD,) = backbone.prefix(x, mask, positions, None, after=(1,))[3]
    made = backbone.layers[1].v(passed_BSD)
    assert torch.allclose(made, values[1].flatten(-2), atol=1e-5)


def test_padding_is_not_seen_and_takes_no_position() -> None:
    backbone = _backbone()
    x = torch.randn(1, 4, 24)
    dense = backbone.prefix(x, torch.ones(1, 4).bool(), torch.arange(4)[None], None)[2]
    spread = torch.randn(1, 7, 24)
    mask = torch.tensor([[1, 0, 1, 1, 0, 0, 1]]).bool()
    spread[:, mask[0]] = x
    sparse = backbone.prefix(spread, mask, masks.positions(mask), None)[2]
    assert torch.allclose(sparse[:, mask[0]], dense, atol=1e-5)


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(1, 1, 1, 8), torch.randn(1, 1, 1, 8)

    def score(a: int, b: int) -> float:
        return float(
            (rotate(q, rope_table(torch.tensor([[a]]), 8)) * rotate(k, rope_table(torch.tensor([[b]]), 8))).sum()
        )

    assert abs(score(3, 7) - score(103, 107)) < 1e-4
    assert abs(score(3, 7) - score(3, 8)) > 1e-3


def test_norms_are_computed_in_float32() -> None:
    x = torch.randn(4, 256).to(torch.bfloat16)
    norm = RMSNorm(256).to(torch.bfloat16)
    torch.nn.init.zeros_(norm.weight)
    y, gate = norm(x)
    assert gate is None
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, rms(x.float()).to(torch.bfloat16))


def test_under_autocast_norms_stay_in_float32_and_results_close() -> None:
    backbone = _backbone()
    x, mask = torch.randn(1, 5, 24), torch.ones(1, 5, dtype=torch.bool)
    exact = backbone.prefix(x, mask, masks.positions(mask), None)[2]
    seen = []
    backbone.layers[1].input_norm.register_forward_hook(lambda module, given, out: seen.append(out[0].dtype))
    with torch.autocast('cpu', torch.bfloat16):
        half = backbone.prefix(x, mask, masks.positions(mask), None)[2]
    assert seen == [torch.float32]
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()
