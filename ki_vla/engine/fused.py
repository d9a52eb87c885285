"""The three stages of `stages.py` from the fused kernels of `kernels.py`: few launches, nothing copied.

Keys and values of prefix and actions lie in one cache: the prefix stage writes its rows, every Euler step of the expert
writes the rows behind them, and attention reads both where they are. Large products of the prefix, where arithmetic and
not memory is the limit, are left to the vendor's library with a kernel for what follows; those of the expert, where
weights are read for 50 rows, and of the vision tower are ours.

Made for the structure that is served: one key/value head, adaptive norms, no state token before the actions, bfloat16.
`why_not` names what does not fit; such models take other modes. tests/ki_vla/engine/test_fused.py compares all stages
with `KiVla`, and counts launches at full size.

Shape legend: V views, N tokens a view, S prefix tokens, Q queries (= H horizon), D width, K head dim, T times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_vla.engine import kernels
from ki_vla.engine.packing import Fusions, Patches, TimeModulation
from ki_vla.engine.stages import Cached, bias_of, expert_of
from ki_vla.errors import VlaError
from ki_vla.model import flow, masks
from ki_vla.model.config import GemmaConfig, ModelConfig
from ki_vla.model.gemma import GemmaLayer, RMSNorm, rope_table
from ki_vla.model.kivla import KiVla, prefix_inputs
from ki_vla.model.siglip import VisionLayer

TILE = 64  # widths are multiples of the tiles that kernels read without masks


def why_not(config: ModelConfig) -> str:
    """Why a model cannot be run by these stages; empty where it can."""
    if config.head != 'expert' or not config.adaptive or config.state_for_expert:
        return 'fused kernels are for an action expert with adaptive norms and no state token before the actions'
    for name in ('backbone', 'expert'):
        gemma: GemmaConfig = getattr(config, name)
        if gemma.kv_heads != 1 or gemma.head_dim & (gemma.head_dim - 1) or gemma.head_dim < 32:
            return f'{name}: fused kernels are for one key/value head of a power of two, at least 32, channels'
        if gemma.width % TILE or gemma.mlp % TILE:
            return f'{name}: fused kernels are for widths that are multiples of {TILE}'
    if config.steps_per_token > 1:
        return 'fused kernels are for one action step a token (model.steps_per_token)'
    return '' if config.horizon <= kernels.SMALL_M else f'fused kernels are for at most {kernels.SMALL_M} actions'


# Of the inputs of a layer's three quantised products, in the order of use.
LayerScales = tuple[float, float, float]
# Of the layers of the vision tower, and of those of the backbone but the last.
Scales = Mapping[str, Sequence[LayerScales]]
Observed = Sequence[Tensor]  # images, their mask, prompt, its mask, state


def watch(layer: nn.Module, name: str, x: Tensor, norm: str = '') -> None:
    """Keep the largest input of a product, behind its norm, while `calibrate` looks at a layer."""
    seen: dict[str, Tensor] | None = getattr(layer, 'seen', None)
    if seen is not None:
        most = kernels.normed(x, norm).abs().amax()
        seen[name] = most if name not in seen else torch.maximum(seen[name], most)


@torch.no_grad()
def calibrate(model: KiVla, observed: Sequence[Observed]) -> Scales:
    """The FP8 scales of the inputs of vision tower and backbone: the largest value that occurs fills the range.

    Args:
        model: in full precision, of a structure that `why_not` has nothing against.
        observed: at least one observation, as the stages read it; what the policy will see, not noise.

    Returns:
        Scales by stage, `vision` and `prefix`.
    """
    vision, prefix = FusedVisionStage(model), FusedPrefixStage(model)
    stages = {'vision': vision.layers, 'prefix': prefix.layers[:-1]}
    for layer in (*vision.layers, *prefix.layers):
        layer.seen = {}
    for images, *rest in observed:
        prefix(vision(images), *rest)
    return {stage: [_scales_of(layer) for layer in layers] for stage, layers in stages.items()}


def _scales_of(layer: nn.Module) -> LayerScales:
    first, second, third = (max(float(most), 1e-6) / kernels.FP8_MAX for most in vars(layer)['seen'].values())
    return first, second, third


@torch.no_grad()
def quantise(vision: FusedVisionStage, prefix: FusedPrefixStage, scales: Scales) -> None:
    """Turn two stages to FP8 in place: vision tower and backbone, but for attention and its output projections.

    Args:
        vision: one stage.
        prefix: the other.
        scales: from `calibrate`.

    Raises:
        VlaError: the scales are those of another structure.
    """
    depths = {'vision': len(vision.layers), 'prefix': len(prefix.layers) - 1}
    if {stage: len(of) for stage, of in scales.items()} != depths:
        raise VlaError(f'FP8 scales are for other layers than {depths}; calibrate again.')
    for index, of in enumerate(scales['vision']):
        vision.layers[index] = QuantisedVisionLayer(cast(FusedVisionLayer, vision.layers[index]), of)
    for index, of in enumerate(scales['prefix']):
        prefix.layers[index] = QuantisedPrefixLayer(cast(FusedPrefixLayer, prefix.layers[index]), of)


class Quantised(nn.Module):
    """A projection in FP8 (E4M3): a scale for each output, and one for the inputs, which calibration has found.

    Args:
        weight: [N, C].
        scale: of the inputs.
    """

    def __init__(self, weight: Tensor, scale: float) -> None:
        super().__init__()
        self.scale = scale
        rows = weight.float().abs().amax(1).clamp(min=1e-12) / kernels.FP8_MAX
        self.weight = _kept(kernels.in_fp8(weight.float() / rows[:, None]))
        self.factor = _kept(rows * scale)

    def forward(
        self,
        x_fp8: Tensor,
        bias: Tensor | None = None,
        residual: Tensor | None = None,
        gelu: bool = False,
        out_scale: float = 0.0,
    ) -> Tensor:
        """[M, C] in FP8 -> [M, N]; see `kernels.linear_twin`."""
        found: Tensor = kernels.linear(
            x_fp8, self.weight, bias, residual=residual, gelu=gelu, factor=self.factor, out_scale=out_scale
        )
        return found


class QuantisedVisionLayer(nn.Module):
    """A vision layer whose products behind norms and the last one are in FP8, in seven launches.

    Args:
        layer: in full precision.
        scales: of the inputs of qkv, fc1 and fc2.
    """

    def __init__(self, layer: FusedVisionLayer, scales: LayerScales) -> None:
        super().__init__()
        self.heads, self.out, self.out_bias = layer.heads, layer.out, layer.out_bias
        self.qkv, self.fc1, self.fc2 = (
            Quantised(getattr(layer, name), scale) for name, scale in zip(('qkv', 'fc1', 'fc2'), scales, strict=True)
        )
        self.qkv_bias, self.fc1_bias, self.fc2_bias = layer.qkv_bias, layer.fc1_bias, layer.fc2_bias

    def forward(self, x_MD: Tensor, views: int) -> Tensor:
        """See `FusedVisionLayer`."""
        heads = self.qkv(kernels.quantise_rows(x_MD, self.qkv.scale, 'layer'), self.qkv_bias)
        mixed = kernels.within_views(heads, views, self.heads)
        x_MD = kernels.linear(mixed, self.out, self.out_bias, residual=x_MD)
        hidden = kernels.quantise_rows(x_MD, self.fc1.scale, 'layer')
        hidden = self.fc1(hidden, self.fc1_bias, gelu=True, out_scale=self.fc2.scale)
        found: Tensor = self.fc2(hidden, self.fc2_bias, x_MD)
        return found


class QuantisedPrefixLayer(nn.Module):
    """A backbone layer whose products behind norms and the last one are in FP8, in nine launches.

    Args:
        layer: in full precision; not the last one, of which keys and values alone are read.
        scales: of the inputs of qkv, gate_up and down.
    """

    def __init__(self, layer: FusedPrefixLayer, scales: LayerScales) -> None:
        super().__init__()
        self.heads, self.o = layer.heads, layer.o
        self.qkv, self.gate_up, self.down = (
            Quantised(getattr(layer, name), scale)
            for name, scale in zip(('qkv', 'gate_up', 'down'), scales, strict=True)
        )

    def forward(self, x_SD: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """See `FusedPrefixLayer`."""
        rows = len(x_SD)
        heads = self.qkv(kernels.quantise_rows(x_SD, self.qkv.scale, 'rms')).to(x_SD.dtype)
        q = kernels.rotate_rows(x_SD, heads, cos, sin, k_cache, v_cache, False)
        mixed = kernels.attend(q, k_cache[:rows], v_cache[:rows], bias, self.heads)
        x_SD.addmm_(mixed, self.o.t())
        hidden = self.gate_up(kernels.quantise_rows(x_SD, self.gate_up.scale, 'rms'))
        found: Tensor = self.down(kernels.quantise_gated(hidden, self.down.scale), residual=x_SD)
        return found


def _kept(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=False)


class FusedVisionLayer(nn.Module):
    """A `VisionLayer` in five launches: the norms in front of the products, biases, GELU and residuals behind them."""

    def __init__(self, layer: VisionLayer) -> None:
        super().__init__()
        self.heads = layer.heads
        joined = torch.cat([each.weight for each in (layer.q, layer.k, layer.v)])
        bias = torch.cat([each.bias for each in (layer.q, layer.k, layer.v)])
        self.qkv, self.qkv_bias, self.qkv_sum = _behind_norm(joined, bias, layer.norm1)
        self.fc1, self.fc1_bias, self.fc1_sum = _behind_norm(layer.fc1.weight, layer.fc1.bias, layer.norm2)
        self.out, self.out_bias = _kept(layer.out.weight), _kept(layer.out.bias)
        self.fc2, self.fc2_bias = _kept(layer.fc2.weight), _kept(layer.fc2.bias)

    def forward(self, x_MD: Tensor, views: int) -> Tensor:
        """Tokens of all views in a row, [V N, D] -> [V N, D]."""
        watch(self, 'qkv', x_MD, 'layer')
        heads = kernels.linear(x_MD, self.qkv, self.qkv_bias, self.qkv_sum)
        mixed = kernels.within_views(heads, views, self.heads)
        x_MD = kernels.linear(mixed, self.out, self.out_bias, residual=x_MD)
        watch(self, 'fc1', x_MD, 'layer')
        hidden = kernels.linear(x_MD, self.fc1, self.fc1_bias, self.fc1_sum, gelu=True)
        watch(self, 'fc2', hidden)
        found: Tensor = kernels.linear(hidden, self.fc2, self.fc2_bias, residual=x_MD)
        return found


def _behind_norm(weight: Tensor, bias: Tensor, norm: nn.LayerNorm) -> tuple[nn.Parameter, nn.Parameter, nn.Parameter]:
    """Weight and bias with scale and shift of the norm in front folded in, and the sums of the weight over inputs."""
    folded = (weight.float() * norm.weight.float()).to(weight.dtype)
    shifted = (bias.float() + weight.float() @ norm.bias.float()).to(bias.dtype)
    return _kept(folded), _kept(shifted), _kept(folded.float().sum(1))


class FusedVisionStage(nn.Module):
    """See `stages.VisionStage`."""

    def __init__(self, model: KiVla) -> None:
        super().__init__()
        vision = model.vision
        self.patches = Patches(vision.patch, vision.position, Fusions())
        self.layers = nn.ModuleList(FusedVisionLayer(cast(VisionLayer, layer)) for layer in vision.layers)
        projector = model.projector
        self.projector, self.projector_bias, self.projector_sum = _behind_norm(
            projector.weight, projector.bias, vision.norm
        )

    def forward(self, images_VHWC: Tensor) -> Tensor:
        """Uint8 [V, H, W, 3] -> backbone inputs [V, N, D]."""
        x_VND = self.patches(images_VHWC)
        views, x_MD = len(x_VND), x_VND.flatten(0, 1)
        for layer in self.layers:
            x_MD = layer(x_MD, views)
        tokens_MD = kernels.linear(x_MD, self.projector, self.projector_bias, self.projector_sum)
        tokens_VND: Tensor = tokens_MD.unflatten(0, (views, -1))
        return tokens_VND


class FusedPrefixLayer(nn.Module):
    """A backbone layer in seven launches, three of them ours; the last layer in two, for its keys and values alone."""

    def __init__(self, layer: GemmaLayer, last: bool) -> None:
        super().__init__()
        self.heads = layer.q.out_features // layer.head_dim
        parts = [layer.k, layer.v] if last else [layer.q, layer.k, layer.v]
        self.qkv = _scaled([each.weight for each in parts], cast(RMSNorm, layer.input_norm))
        self.last = last
        if not last:
            self.o, self.down = _kept(layer.o.weight), _kept(layer.down.weight)
            self.gate_up = _scaled([layer.gate.weight, layer.up.weight], cast(RMSNorm, layer.mlp_norm))

    def forward(self, x_SD: Tensor, cos: Tensor, sin: Tensor, bias: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
        """[S, D] -> [S, D], in place; rows 0 to S of a layer's cache are written."""
        rows = len(x_SD)
        watch(self, 'qkv', x_SD, 'rms')
        q = kernels.rotate_rows(x_SD, F.linear(x_SD, self.qkv), cos, sin, k_cache, v_cache)
        if self.last:
            return x_SD
        mixed = kernels.attend(q, k_cache[:rows], v_cache[:rows], bias, self.heads)
        x_SD.addmm_(mixed, self.o.t())
        watch(self, 'gate_up', x_SD, 'rms')
        hidden = kernels.gate_rows(x_SD, F.linear(x_SD, self.gate_up))
        watch(self, 'down', hidden)
        return x_SD.addmm_(hidden, self.down.t())


def _scaled(weights: list[Tensor], norm: RMSNorm) -> nn.Parameter:
    """Weights of several projections in a row, the scale of the norm in front folded in."""
    joined = torch.cat(weights)
    return _kept((joined.float() * (1.0 + norm.weight.float())).to(joined.dtype))


class FusedPrefixStage(nn.Module):
    """See `stages.PrefixStage`; the cache it returns has room for the actions behind the prefix."""

    def __init__(self, model: KiVla) -> None:
        super().__init__()
        self.head_dim, self.embed, self.state_proj = model.config.backbone.head_dim, model.embed, model.state_proj
        self.horizon, depth = model.config.horizon, len(model.backbone.layers)
        self.layers = nn.ModuleList(
            FusedPrefixLayer(cast(GemmaLayer, layer), index == depth - 1)
            for index, layer in enumerate(model.backbone.layers)
        )

    def forward(
        self, tokens_VND: Tensor, image_mask_V: Tensor, prompt_L: Tensor, prompt_mask_L: Tensor, state_S: Tensor
    ) -> Cached:
        """Image tokens, prompt and state -> `Cached` with keys and values [Y, S + H, 1, K]."""
        mask_BS = masks.prefix_mask(
            image_mask_V[None], tokens_VND.shape[1], prompt_mask_L[None], self.state_proj is not None
        )
        S, H = mask_BS.shape[1], self.horizon
        places = torch.cat([masks.positions(mask_BS)[0], masks.positions_after(masks.lengths(mask_BS), H)[0]])
        cos, sin = (each[:, 0] for each in rope_table(places, self.head_dim))
        bias = bias_of(torch.cat([mask_BS, torch.ones_like(mask_BS[:, :1]).expand(1, H)], dim=1))
        x_SD = prefix_inputs(self.embed, self.state_proj, tokens_VND.flatten(0, 1), prompt_L, state_S)
        k, v = (x_SD.new_empty(len(self.layers), S + H, 1, self.head_dim) for _ in range(2))
        for index, layer in enumerate(self.layers):
            x_SD = layer(x_SD, cos[:S], sin[:S], bias[:, :S], k[index, :, 0], v[index, :, 0])
        return Cached(k, v, cos[S:, None], sin[S:, None], bias)


class FusedActionStage(nn.Module):
    """The action expert on a cache, six launches a layer and two more a step; see `stages.ActionStage`."""

    def __init__(self, model: KiVla, steps: int) -> None:
        super().__init__()
        expert = expert_of(model)
        self.steps, self.heads = steps, model.config.expert.heads
        device = expert.action_in.weight.device
        times = TimeModulation(expert, torch.cat([flow.step_times(steps, device), torch.ones(1, device=device)]))
        self.action_in, self.action_in_bias = _kept(expert.action_in.weight), _kept(expert.action_in.bias)
        self.layers = nn.ModuleList(
            FusedExpertLayer(cast(GemmaLayer, layer), times, 2 * index) for index, layer in enumerate(expert.layers)
        )
        self.scale = _kept(times.scale[-1].contiguous())
        self.action_out = _kept(expert.action_out.weight)
        self.shift = _kept(times.shift[-1] @ expert.action_out.weight.float().t() + expert.action_out.bias.float())

    def forward(
        self, cached: Cached, noise_HA: Tensor, previous_HA: Tensor | None = None, given_H: Tensor | None = None
    ) -> Tensor:
        """All Euler steps: noise -> actions; where `given_H`, those of the old chunk, at their own time (see `rtc`)."""
        given = noise_HA.new_zeros(len(noise_HA), dtype=torch.int32) if given_H is None else given_H.to(torch.int32)
        previous_HA = noise_HA if previous_HA is None else previous_HA
        x_HA = noise_HA if given_H is None else torch.where(given_H[:, None], previous_HA, noise_HA)
        cos, sin = cached.cos[:, 0].contiguous(), cached.sin[:, 0].contiguous()
        for row in range(self.steps):
            x_QD = kernels.linear(x_HA, self.action_in, self.action_in_bias)
            for index, layer in enumerate(self.layers):
                cache = cached.k[index, :, 0], cached.v[index, :, 0]
                x_QD = layer(x_QD, cos, sin, cached.bias, *cache, given, row, self.heads)
            x_HA = kernels.field(
                x_QD, self.action_out, self.scale, self.shift, given, x_HA, previous_HA, row, 1.0 / self.steps
            )
        return x_HA


class FusedExpertLayer(nn.Module):
    """A layer of the expert; what its norms do at each time is tabled (see `kernels`)."""

    def __init__(self, layer: GemmaLayer, times: TimeModulation, norm: int) -> None:
        super().__init__()
        self.qkv = _kept(torch.cat([each.weight for each in (layer.q, layer.k, layer.v)]))
        self.gate_up = _kept(torch.cat([layer.gate.weight, layer.up.weight]))
        self.o, self.down = _kept(layer.o.weight), _kept(layer.down.weight)
        self.qkv_scale, self.mlp_scale = (_kept(times.scale[each].contiguous()) for each in (norm, norm + 1))
        self.qkv_shift = _kept(times.shift[norm] @ self.qkv.float().t())
        self.mlp_shift = _kept(times.shift[norm + 1] @ self.gate_up.float().t())
        self.o_gate, self.down_gate = (_kept(times.gate[each].contiguous()) for each in (norm, norm + 1))

    def forward(
        self,
        x_QD: Tensor,
        cos: Tensor,
        sin: Tensor,
        bias: Tensor,
        k_cache: Tensor,
        v_cache: Tensor,
        given: Tensor,
        row: int,
        heads: int,
    ) -> Tensor:
        """[Q, D] -> [Q, D]; the rows of the cache behind the prefix are written."""
        first = len(k_cache) - len(x_QD)
        q = kernels.qkv(x_QD, self.qkv, self.qkv_scale, self.qkv_shift, given, cos, sin, k_cache, v_cache, first, row)
        mixed = kernels.combine(*kernels.attend_parts(q, k_cache, v_cache, bias, heads, kernels.PARTS), q)
        x_QD = kernels.linear(mixed, self.o, None, None, x_QD, self.o_gate, given, row)
        hidden = kernels.gated_up(x_QD, self.gate_up, self.mlp_scale, self.mlp_shift, given, row)
        found: Tensor = kernels.linear(hidden, self.down, None, None, x_QD, self.down_gate, given, row)
        return found
