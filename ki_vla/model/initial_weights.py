"""Weights to train a model from scratch."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from ki_vla.model.kivla import KiVla


def initialise(model: KiVla, generator: torch.Generator | None = None, only: Collection[str] | None = None) -> KiVla:
    """Weights to train from scratch, all of them or `only` those of some names; returns the model.

    Matrices are normal with variance 1/inputs, projections back to the residual stream smaller by sqrt(2 * depth);
    the embedding is scaled so that its rows have unit length in the stream; norms start at the identity, adaptive
    norms closed.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if only is not None and name not in only:
                continue
            _initialise(name, parameter, model, generator)
    return model


def _initialise(name: str, parameter: Tensor, model: KiVla, generator: torch.Generator | None) -> None:
    owner, _, kind = name.rpartition('.')
    leaf = owner.rpartition('.')[2]
    if leaf in ('norm1', 'norm2') or owner == 'vision.norm':
        parameter.fill_(1.0 if kind == 'weight' else 0.0)
    elif (
        kind == 'bias'
        or leaf == 'dense'
        or leaf in ('norm', 'input_norm', 'mlp_norm')
        or name == 'expert.action_out.weight'
    ):
        parameter.zero_()
    elif name in ('embed.weight', 'expert.query.weight'):
        parameter.normal_(0.0, model.config.backbone.width**-0.5, generator=generator)
    elif name == 'vision.position':
        parameter.normal_(0.0, 0.02, generator=generator)
    else:
        std = parameter[0].numel() ** -0.5
        depth = {'vision': model.config.vision.depth, 'backbone': model.config.backbone.depth}.get(name.split('.')[0])
        depth = depth or model.config.expert.depth
        if leaf in ('o', 'down', 'out', 'fc2'):
            std *= (2 * depth) ** -0.5
        parameter.normal_(0.0, std, generator=generator)
