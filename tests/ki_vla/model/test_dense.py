"""Training heads on image tokens teach the vision tower to see, and no bundle has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ki_vla.errors import VlaError
from ki_vla.model.config import DenseConfig, preset
from ki_vla.objective.batch import Batch
from ki_vla.objective.patch_labels import UNKNOWN
from ki_vla.objective.recipes import recipe

LABELS = {'colour': ('red', 'blue'), 'kind': ('cup', 'ball', 'block')}
CONFIG = preset('tiny').replace(dense=DenseConfig(labels=LABELS))


def labelled(batch: Batch) -> Batch:
    """The first example shows a blue cup in its first patch; nobody has looked at the others."""
    B, V = batch.images_BVCHW.shape[:2]
    dense = torch.full((B, V, CONFIG.vision.tokens, 2), UNKNOWN)
    dense[0] = 0
    dense[0, 0, 0] = torch.tensor([2, 1])
    offset = torch.full((B, V, CONFIG.vision.tokens, 2), torch.nan)
    offset[0, 0, 0] = torch.tensor([0.1, -0.2])
    points = torch.full((B, 2, 2), torch.nan)
    points[0, 0] = torch.tensor([0.3, 0.2])
    return replace(batch, dense_BVNK=dense, offset_BVN2=offset, points_BM2=points)


def test_it_counts_examples_with_labels_and_learns_them(make_model: Callable, make_batch: Callable) -> None:
    model = make_model('ours', CONFIG)
    batch = labelled(make_batch(model))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    first = model(batch, generator=torch.Generator().manual_seed(0))
    assert int(first.dense_count) == 1
    torch.testing.assert_close(first.total, first.tokens + first.flow + first.dense)
    first.dense.backward()
    seen = {name.split('.')[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {'dense', 'vision', 'projector', 'backbone'} <= seen
    assert 'expert' not in seen
    optimiser.step()
    assert float(model(batch, generator=torch.Generator().manual_seed(0)).dense.detach()) < float(first.dense.detach())


def test_a_patch_learns_whether_it_shows_what_the_words_ask_for(make_model: Callable, make_batch: Callable) -> None:
    """Its head reads what the patch became in the backbone, where it has read the words; not the picture alone."""
    model = make_model('ours', CONFIG)
    batch = labelled(make_batch(model))
    assert batch.points_BM2 is not None
    batch.points_BM2[1, 0] = torch.tensor([1.2, 0.4])  # carried out of the view
    heads = model.dense
    assert heads is not None
    tokens = model.encode(batch.images_BVCHW)
    seen = (batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS)
    prefix = model.prefix(tokens, *seen, hidden=True, after=CONFIG.dense_layers)
    (passing_BnD,) = prefix.passing_BnD
    assert passing_BnD.shape == (len(tokens), 1 + CONFIG.vision.tokens, CONFIG.backbone.width)
    torch.testing.assert_close(prefix.hidden_BD, model.prefix(tokens, *seen, hidden=True).hidden_BD)
    loss_B = heads._asked_loss(passing_BnD[:, 1:], batch.points_BM2)
    assert float(loss_B[0].detach()) > 0
    assert not loss_B[1:].any(), 'no patch shows what those ask for, or nobody knows which'
    loss_B.sum().backward()
    assert model.embed.weight.grad is not None
    words = batch.prompt_BL[0][batch.prompt_mask_BL[0]].unique()
    assert model.embed.weight.grad[words].any(), 'the words are taught by it too'


def test_what_is_asked_for_is_taught_where_the_expert_sees_it(make_model: Callable, make_batch: Callable) -> None:
    """Below the last layer: its keys and values are made of what the heads read, and none of its own output."""
    model = make_model('ours', CONFIG)
    batch = labelled(make_batch(model))
    model(batch).dense.backward()
    *below, last = model.backbone.layers
    assert all(layer.q.weight.grad.any() for layer in below)
    assert last.q.weight.grad is None or not last.q.weight.grad.any()


@pytest.mark.parametrize('layers', [(3,), (2, 1), (1, 1)])
def test_layers_that_do_not_ascend_below_the_last_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(VlaError, match=r'dense\.layers is \[.*\]; write numbers from 1 to 2, ascending'):
        preset('tiny').replace(dense=DenseConfig(labels=LABELS, layers=layers))


def test_without_labels_the_loss_is_nothing_and_every_parameter_still_has_a_gradient_path(
    make_model: Callable, make_batch: Callable
) -> None:
    model = make_model('ours', CONFIG)
    found = model(make_batch(model))
    assert float(found.dense) == 0.0
    assert int(found.dense_count) == 0


def test_labels_of_examples_that_nobody_has_looked_at_do_not_count(make_model: Callable, make_batch: Callable) -> None:
    model = make_model('ours', CONFIG)
    batch = labelled(make_batch(model))
    images = batch.images_BVCHW.clone()
    images[1:] = 0.5
    one, other = (model(each).dense for each in (batch, replace(batch, images_BVCHW=images)))
    torch.testing.assert_close(one, other)


def test_a_frozen_backbone_leaves_the_heads_alone(make_model: Callable, make_batch: Callable) -> None:
    model = make_model('frozen', CONFIG)
    found = model(labelled(make_batch(model)), recipe('frozen'))
    assert int(found.dense_count) == 0
    assert not any(p.requires_grad for name, p in model.named_parameters() if name.startswith('dense.'))


def test_labels_for_a_model_without_heads_and_of_another_shape_are_refused(
    make_model: Callable, make_batch: Callable
) -> None:
    batch = make_batch(make_model('ours', CONFIG))
    with pytest.raises(VlaError, match=r'dense_BVNK: the model has no heads for it \(model\.dense\)'):
        labelled(batch).check(preset('tiny'))
    with pytest.raises(VlaError, match=r'points_BM2'):
        replace(labelled(batch), points_BM2=torch.zeros(1, 3)).check(CONFIG)
    with pytest.raises(VlaError, match=r"labels\.kind is \['cup', 'cup'\]"):
        DenseConfig(labels={'kind': ('cup', 'cup')})
