"""Packed action stages of the heads other than the expert, and the stages that say actions token by token.

    SharedStage        transfusion: the backbone's own weights denoise, in Euler steps as the expert does
    ParallelStage      OpenVLA-OFT: learned queries, all steps of a chunk at once; one step, and no noise
    TokenPrefixStage   pi0-FAST: reads prompt and pictures once, and has room for the tokens that follow
    TokenStage         reads one token more and says what may follow it

Keys and values of tokens lie in slots of a fixed number behind those of the prefix, so that one graph of one shape
serves every token.

Shape legend: V views, N tokens a view, L prompt slots, S prefix tokens, T slots for tokens, C = S + T, Y layers, G
key/value heads, K head dim, H horizon, A action dims, D width, W vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_vla.engine.packing import Fusions, PackedLayer, Product, norm_of
from ki_vla.engine.stages import ATTENTIONS, LEAST, ActionStage, Cached, Denoiser, bias_of, layer_attention
from ki_vla.errors import VlaError
from ki_vla.model import masks
from ki_vla.model.expert import Expert, ParallelHead, SharedHead
from ki_vla.model.flow import time_features
from ki_vla.model.gemma import Attend, GemmaLayer, rope_table, run_layers
from ki_vla.model.kivla import KiVla, embedded, prefix_inputs


def action_stage(model: KiVla, steps: int, fusions: Fusions, attend: str = 'matmul', consume: bool = False) -> Denoiser:
    """The stage that gives continuous actions.

    Args:
        model: with any head but 'none'.
        steps: Euler steps.
        fusions: changes to the layers.
        attend: see `stages.ATTENTIONS`.
        consume: see `stages.PrefixStage`.

    Raises:
        VlaError: the model has no continuous actions.
    """
    if isinstance(model.expert, Expert):
        return ActionStage(model, steps, fusions, attend, consume)
    if isinstance(model.expert, SharedHead):
        return SharedStage(model, steps, fusions, attend)
    if isinstance(model.expert, ParallelHead):
        return ParallelStage(model, fusions, attend)
    raise VlaError(
        f'model.head {model.config.head!r} has no continuous actions; it says them as tokens (decode tokens).'
    )


class _BackboneStage(Denoiser):
    """What follows the prefix in the backbone's own layers."""

    def __init__(self, model: KiVla, steps: int, fusions: Fusions, attend: str) -> None:
        super().__init__(steps, model.embed.weight.device)
        self.attend = ATTENTIONS[attend]
        self.layers = nn.ModuleList(PackedLayer(cast(GemmaLayer, layer), fusions) for layer in model.backbone.layers)
        self.norm, self.norm_scale = norm_of(model.backbone.norm, fusions)

    def hidden(self, cached: Cached, x_HD: Tensor) -> Tensor:
        """Normed outputs [H, D], but for the norm's scale where that is folded into what follows."""
        x_HD, _, _ = run_layers(
            self.layers, x_HD, (cached.cos, cached.sin), lambda layer: layer_attention(self.attend, cached, layer)
        )
        normed_HD: Tensor = self.norm(x_HD)[0]
        return normed_HD


class SharedStage(_BackboneStage):
    """Transfusion's field; see `ki_vla.model.expert.SharedHead`."""

    time_TD: Tensor

    def __init__(self, model: KiVla, steps: int, fusions: Fusions, attend: str = 'matmul') -> None:
        super().__init__(model, steps, fusions, attend)
        head = cast(SharedHead, model.expert)
        self.action_in = Product([head.action_in], True)
        self.action_out = Product([head.action_out], True, self.norm_scale)
        self.register_buffer('time_TD', time_features(self.tau_T, head.width), persistent=False)

    def field(self, cached: Cached, noisy_HA: Tensor, row: int | Tensor) -> Tensor:
        """See `Denoiser.field`."""
        x_HD = self.action_in(noisy_HA.to(self.action_in.weights[0].dtype))
        x_HD = x_HD + self.time_TD[row].to(x_HD.dtype)
        field_HA: Tensor = self.action_out(self.hidden(cached, x_HD)).float()
        return field_HA


class ParallelStage(_BackboneStage):
    """OpenVLA-OFT's chunk, in one 'step' that does not look at the noise; see `ki_vla.model.expert.ParallelHead`."""

    def __init__(self, model: KiVla, fusions: Fusions, attend: str = 'matmul') -> None:
        super().__init__(model, 1, fusions, attend)
        head = cast(ParallelHead, model.expert)
        self.query_HD = nn.Parameter(head.query.weight.detach(), requires_grad=False)
        self.hidden_out = Product([head.hidden], True, self.norm_scale)
        self.action_out = Product([head.action_out], True)

    def field(self, cached: Cached, noisy_HA: Tensor, row: int | Tensor) -> Tensor:
        """There is none.

        Raises:
            VlaError: always.
        """
        raise VlaError("head 'parallel' does not sample, so it cannot continue a chunk.")

    def plain(self, cached: Cached, noisy_HA: Tensor, row: int | Tensor) -> Tensor:
        """The whole chunk [H, A]."""
        hidden_HD = self.hidden_out(self.hidden(cached, self.query_HD))
        actions_HA: Tensor = self.action_out(F.gelu(hidden_HD, approximate='tanh')).float()
        return actions_HA


class TokenCache(NamedTuple):
    """What one more token reads.

    Attributes:
        k, v: rotated keys, and values, of the prefix and of the tokens so far [Y, C, G, K].
        bias_1C: float32, 0 at valid prefix tokens and the least float elsewhere; slots of tokens open one by one.
        length_1: valid prefix tokens, int64.
    """

    k: Tensor
    v: Tensor
    bias_1C: Tensor
    length_1: Tensor


class _SaysTokens(nn.Module):
    """Backbone layers with the output head, which is the embedding."""

    def __init__(self, model: KiVla, fusions: Fusions, attend: str) -> None:
        super().__init__()
        self.head_dim, self.slots = model.config.backbone.head_dim, model.config.max_targets
        self.embed, self.attend = model.embed, ATTENTIONS[attend]
        self.layers = nn.ModuleList(PackedLayer(cast(GemmaLayer, layer), fusions) for layer in model.backbone.layers)
        self.norm, _ = norm_of(model.backbone.norm, Fusions(folded=False))

    def logits(self, x_1D: Tensor) -> Tensor:
        """One output -> logits over the vocabulary, float32 [W]."""
        return F.linear(self.norm(x_1D)[0], self.embed.weight)[0].float()


class TokenPrefixStage(_SaysTokens):
    """Image tokens, prompt and state -> logits of the first token, and a `TokenCache` with room for all of them."""

    def __init__(self, model: KiVla, fusions: Fusions, attend: str = 'matmul') -> None:
        super().__init__(model, fusions, attend)
        self.state_proj = model.state_proj

    def forward(
        self, tokens_VND: Tensor, image_mask_V: Tensor, prompt_L: Tensor, prompt_mask_L: Tensor, state_S: Tensor
    ) -> tuple[Tensor, ...]:
        """Logits [W], then the tensors of `TokenCache`."""
        mask_BS = masks.prefix_mask(
            image_mask_V[None], tokens_VND.shape[1], prompt_mask_L[None], self.state_proj is not None
        )
        rope, bias_1S = rope_table(masks.positions(mask_BS)[0], self.head_dim), bias_of(mask_BS)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attend(q, k, v, bias_1S)

        x_SD = prefix_inputs(self.embed, self.state_proj, tokens_VND.flatten(0, 1), prompt_L, state_S)
        x_SD, keys, values = run_layers(self.layers, x_SD, rope, lambda layer: attend)
        k, v = (F.pad(torch.stack(list(each)), (0, 0, 0, 0, 0, self.slots)) for each in (keys, values))
        logits_W = self.logits(x_SD[masks.last_valid(mask_BS)])
        bias_1C = F.pad(bias_1S, (0, self.slots), value=LEAST)
        return logits_W, k, v, bias_1C, masks.lengths(mask_BS)


class TokenStage(_SaysTokens):
    """One token more: its logits and the cache that holds it.

    Args:
        model: whose backbone.
        fusions: changes to the layers.
        attend: see `stages.ATTENTIONS`.
    """

    def __init__(self, model: KiVla, fusions: Fusions, attend: str = 'matmul') -> None:
        super().__init__(model, fusions, attend)

    def forward(
        self, token_1: Tensor, index_1: Tensor, k: Tensor, v: Tensor, bias_1C: Tensor, length_1: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`token_1` is token number `index_1` after the prompt -> logits [W], keys and values [Y, C, G, K]."""
        slot_C = torch.arange(bias_1C.shape[1], device=bias_1C.device) - (bias_1C.shape[1] - self.slots)
        here_C11 = (slot_C == index_1)[:, None, None]
        bias_1C = torch.where((slot_C >= 0) & (slot_C <= index_1), 0.0, bias_1C)

        def attend_at(layer: int) -> Attend:
            def attend(q_1NK: Tensor, k_1GK: Tensor, v_1GK: Tensor) -> Tensor:
                seen_k, seen_v = torch.where(here_C11, k_1GK, k[layer]), torch.where(here_C11, v_1GK, v[layer])
                return self.attend(q_1NK, seen_k, seen_v, bias_1C)

            return attend

        x_1D = embedded(self.embed, token_1)
        x_1D, keys, values = run_layers(self.layers, x_1D, rope_table(length_1 + index_1, self.head_dim), attend_at)
        k, v = (torch.where(here_C11, torch.stack(list(new)), old) for new, old in ((keys, k), (values, v)))
        return self.logits(x_1D), k, v
