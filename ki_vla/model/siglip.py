"""The SigLIP vision tower: an image to a sequence of tokens, without class token or pooling (arXiv 2303.15343).

`EncoderLayer` is the layer's function, written once. `VisionLayer` holds its matrices as they are trained and saved,
`ki_vla.engine.packing.PackedVisionLayer` holds fewer and larger ones; tests/ki_vla/engine/test_stages.py holds them to
the same numbers.

Shape legend: I images (batch times views), C colours, H W pixels, N tokens, D width, E heads, K head dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_vla.model.config import VisionConfig
from ki_vla.model.gemma import full_attention, run

EPS = 1e-6


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer with biases, full attention and a tanh-GELU MLP, whatever way the matrices are held.

    A subclass has the norms `norm1` and `norm2` and the projections `out`, `fc1` and `fc2`.
    """

    norm1: nn.Module
    norm2: nn.Module
    out: nn.Module
    fc1: nn.Module
    fc2: nn.Module

    def heads_of(self, h_IND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Normed inputs -> queries, keys and values [I, E, N, K]."""
        raise NotImplementedError

    def forward(self, x_IND: Tensor) -> Tensor:
        """[I, N, D] -> [I, N, D]."""
        mixed_IENK = full_attention(*self.heads_of(self.norm1(x_IND)))
        x_IND = x_IND + self.out(mixed_IENK.transpose(1, 2).flatten(2))
        mlp_IND: Tensor = self.fc2(F.gelu(self.fc1(self.norm2(x_IND)), approximate='tanh'))
        return x_IND + mlp_IND


class VisionLayer(EncoderLayer):
    """The layer as it is trained and saved."""

    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    out: nn.Linear
    fc1: nn.Linear
    fc2: nn.Linear

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        D = config.width
        self.heads = config.heads
        self.norm1, self.norm2 = nn.LayerNorm(D, eps=EPS), nn.LayerNorm(D, eps=EPS)
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(D, config.mlp), nn.Linear(config.mlp, D)

    def heads_of(self, h_IND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See `EncoderLayer.heads_of`."""
        q, k, v = (layer(h_IND).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return q, k, v


class Vision(nn.Module):
    """Patches, learned positions, layers, a last norm (SigLIP So400m/14 at the `full` size)."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)
        self.position = nn.Parameter(torch.empty(config.tokens, config.width))
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=EPS)

    def forward(self, images_ICHW: Tensor, checkpointing: bool = False) -> Tensor:
        """Float images in [-1, 1] -> tokens [I, N, D]."""
        x_IND = self.patch(images_ICHW).flatten(2).transpose(1, 2) + self.position
        for layer in self.layers:
            x_IND = run(layer, checkpointing, x_IND)
        normed_IND: Tensor = self.norm(x_IND)
        return normed_IND
