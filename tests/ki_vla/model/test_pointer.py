"""The action expert hears where the backbone says the thing is that the words ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model.config import DenseConfig, ModelConfig, PointerConfig, preset
from ki_vla.model.kivla import KiVla
from ki_vla.model.pointer import POINT_SCALE, PlacePointer
from ki_vla.objective.batch import Batch
from ki_vla.objective.patch_labels import UNKNOWN
from ki_vla.objective.recipes import recipe
from ki_vla.objective.trainable import parts_of, prepare

LABELS = DenseConfig(labels={'colour': ('red', 'blue')})
CONFIG = preset('tiny', state_repr='both', dense=LABELS, pointer=PointerConfig(layer=2))


def pointed(batch: Batch) -> Batch:
    """Nobody has looked at the pictures, but the first example says where to look."""
    B, V = batch.images_BVCHW.shape[:2]
    dense = torch.full((B, V, CONFIG.vision.tokens, 1), UNKNOWN)
    offset = torch.full((B, V, CONFIG.vision.tokens, 2), torch.nan)
    points = torch.full((B, 2, 2), torch.nan)
    points[0] = torch.tensor([[0.3, 0.2], [0.6, 0.7]])
    return replace(batch, dense_BVNK=dense, offset_BVN2=offset, points_BM2=points)


def test_it_learns_the_place_and_says_how_sure_it_is() -> None:
    torch.manual_seed(0)
    pointer, seen_BD = PlacePointer(16), torch.randn(5, 16)
    nowhere, outside = [torch.nan, torch.nan], [1.3, 0.5]
    places_BM2 = torch.tensor(
        [
            [[0.1, 0.9], [0.2, 0.3]],
            [[0.5, 0.5], nowhere],
            [nowhere, [0.72, 0.3]],
            [nowhere, nowhere],
            [outside, nowhere],
        ]
    )
    there_BM = places_BM2.isfinite().all(-1)
    optimiser = torch.optim.Adam(pointer.parameters(), lr=0.03)
    for _ in range(300):
        optimiser.zero_grad()
        loss_B = pointer.loss(seen_BD, places_BM2)
        loss_B.sum().backward()
        optimiser.step()
    assert float(loss_B[3]) == 0.0
    said_BC = pointer(seen_BD)
    columns, rows, places = (each.unflatten(-1, (2, -1)) for each in said_BC.detach().split([24, 24, 4], dim=-1))
    torch.testing.assert_close(places[there_BM], (places_BM2[there_BM] - 0.5) / POINT_SCALE, atol=0.05, rtol=0)
    torch.testing.assert_close(pointer.heard(said_BC)[there_BM], places_BM2[there_BM], atol=0.02, rtol=0)
    assert columns.argmax(-1)[there_BM].tolist() == [1, 2, 6, 8, 11]
    assert rows.argmax(-1)[there_BM].tolist() == [10, 3, 6, 3, 6]
    assert columns.amax(-1)[there_BM].min() > 0.9


@pytest.mark.parametrize('insulate', [True, False])
def test_actions_follow_what_it_says_and_teach_it_only_without_insulation(
    make_model: Callable, make_batch: Callable, insulate: bool
) -> None:
    model: KiVla = make_model(config=CONFIG)
    model.requires_grad_(True)
    batch = make_batch(model)
    seen = (batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS)
    prefix = model.prefix(model.encode(batch.images_BVCHW), *seen)
    assert prefix.said_BC is not None
    noisy, tau = torch.randn(len(batch.state_BS), 8, 4), torch.full((len(batch.state_BS),), 0.3)
    field = model.field(prefix, noisy, tau, insulate)
    elsewhere = model.field(replace(prefix, said_BC=prefix.said_BC + 1.0), noisy, tau, insulate)
    assert (field - elsewhere).abs().max() > 1e-3
    field.square().sum().backward()
    assert model.pointer is not None
    taught = [p.grad is not None and bool(p.grad.any()) for p in model.pointer.parameters()]
    assert any(taught) is not insulate


def test_heads_for_training_teach_it(make_model: Callable, make_batch: Callable) -> None:
    model = make_model('ours', CONFIG)
    found = model(pointed(make_batch(model)))
    assert int(found.dense_count) == 1
    found.dense.backward()
    assert all(p.grad is not None and p.grad.any() for p in model.pointer.parameters())
    assert model.dense.pointer is None, 'there is one pointer'


def test_it_is_a_part_that_stands_still_where_nothing_teaches_it() -> None:
    assert 'pointer' in parts_of(recipe('ours'), CONFIG)
    assert 'pointer' not in parts_of(recipe('ours'), CONFIG.replace(pointer=None))
    assert 'pointer' not in parts_of(recipe('frozen'), CONFIG)
    assert all(name.startswith('expert.') for name in prepare(KiVla(CONFIG), recipe('frozen')))


def test_a_served_model_hears_it_without_the_heads_that_taught_it(make_model: Callable, make_batch: Callable) -> None:
    model = make_model(config=CONFIG)
    served = KiVla(CONFIG.replace(dense=None))
    served.load_state_dict({name: w for name, w in model.state_dict().items() if not name.startswith('dense.')})
    batch = make_batch(model)
    inputs = (batch.images_BVCHW, batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS)
    assert torch.equal(model.prefill(*inputs).said_BC, served.prefill(*inputs).said_BC)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'state_repr': 'text'}, "pointer is heard beside the state, and state_repr is 'text'; write suffix or both"),
        ({'pointer': PointerConfig(layer=3)}, 'pointer.layer is 3; write a number from 1 to 2, below backbone.depth'),
        ({'pointer': PointerConfig(layer=1)}, r'pointer.layer is 1; write one of dense.layers, \[2\]'),
    ],
)
def test_a_pointer_that_nobody_hears_or_teaches_is_refused(changes: dict, message: str) -> None:
    with pytest.raises(VlaError, match=message):
        CONFIG.replace(**changes)


def test_a_run_can_ask_for_it_by_a_mapping() -> None:
    changed: ModelConfig = preset('tiny', state_repr='suffix').changed({'pointer': {'layer': 1, 'cells': 5}})
    assert changed.pointer == PointerConfig(layer=1, cells=5)
    assert changed.state_token_dim == changed.state_dim + 24
