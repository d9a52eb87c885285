"""The three stages of inference as modules of pure tensor functions: images, prefix, actions.

They compute what `KiVla.prefill`, `KiVla.denoise` and `rtc` compute, from packed layers (see `packing`) and without a
batch dimension, for speed: a robot asks for one chunk at a time. All modes of torch and the exported graphs use them.
Views and prompt slots are static in an engine and symbolic in an export. tests/ki_vla/engine/test_stages.py compares
every stage with `KiVla`, for every model structure and every way of denoising.

Shape legend: V views, N tokens a view, L prompt slots, S prefix tokens, Y layers, G key/value heads, K head dim, D
width, Q queries (the tokens of a chunk, or one more with pi0's state token), H horizon, A action dims.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ki_vla.engine.packing import (
    Fusions,
    PackedLastLayer,
    PackedLayer,
    PackedVisionLayer,
    Patches,
    Product,
    Rows,
    TimeModulation,
    norm_of,
)
from ki_vla.errors import VlaError
from ki_vla.model import flow, masks
from ki_vla.model.expert import Expert, grouped
from ki_vla.model.gemma import Attend, GemmaLayer, rope_table, run_layers
from ki_vla.model.kivla import KiVla, prefix_inputs
from ki_vla.model.siglip import VisionLayer
from ki_vla.policy import rtc

LEAST = torch.finfo(torch.float32).min


def attention(q_QNK: Tensor, k_SGK: Tensor, v_SGK: Tensor, bias: Tensor) -> Tensor:
    """One softmax over keys that several heads share, in float32, of logits that are rounded to the queries' precision.

    The heads of one group are rows of one product: with a single key/value head nothing is moved or repeated.

    Args:
        q_QNK: scaled and rotated queries.
        k_SGK: rotated keys.
        v_SGK: values.
        bias: float32 [1, S], or [Q, S] where queries differ: 0 or the least float.

    Returns:
        [Q, N * K].
    """
    Q, N, K = q_QNK.shape
    G = k_SGK.shape[1]
    if len(bias) > 1:
        bias = bias[:, None].expand(-1, N // G, -1).flatten(0, 1)
    if G == 1:
        logits = (q_QNK.reshape(Q * N, K) @ k_SGK[:, 0].t()).float() + bias
        return (logits.softmax(dim=-1).to(v_SGK.dtype) @ v_SGK[:, 0]).reshape(Q, N * K)
    q_GRK = q_QNK.reshape(Q, G, N // G, K).transpose(0, 1).flatten(1, 2)
    logits = (q_GRK @ k_SGK.permute(1, 2, 0)).float() + bias
    mixed_GRK = logits.softmax(dim=-1).to(v_SGK.dtype) @ v_SGK.transpose(0, 1)
    return mixed_GRK.reshape(G, Q, N // G, K).transpose(0, 1).reshape(Q, N * K)


def attention_sdpa(q_QNK: Tensor, k_SGK: Tensor, v_SGK: Tensor, bias: Tensor) -> Tensor:
    """The same through torch's fused kernel, which is the faster one on some devices and the slower one on others."""
    Q, N, K = q_QNK.shape
    G = k_SGK.shape[1]
    if len(bias) > 1:
        bias = bias[:, None].expand(-1, N // G, -1).flatten(0, 1)
    q_GRK = q_QNK.reshape(Q, G, N // G, K).transpose(0, 1).flatten(1, 2)
    mixed_1GRK = F.scaled_dot_product_attention(
        q_GRK[None],
        k_SGK.transpose(0, 1)[None],
        v_SGK.transpose(0, 1)[None],
        bias[None, None].to(q_QNK.dtype),
        scale=1.0,
    )
    return mixed_1GRK.reshape(G, Q, N // G, K).transpose(0, 1).reshape(Q, N * K)


Attention = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
ATTENTIONS: dict[str, Attention] = {'matmul': attention, 'sdpa': attention_sdpa}


class VisionStage(nn.Module):
    """Camera views, uint8 [V, H, W, 3] -> backbone inputs [V, N, D]."""

    def __init__(self, model: KiVla, fusions: Fusions) -> None:
        super().__init__()
        vision = model.vision
        self.patches = Patches(vision.patch, vision.position, fusions)
        self.layers = nn.ModuleList(PackedVisionLayer(cast(VisionLayer, layer), fusions) for layer in vision.layers)
        if fusions.folded:
            self.norm = nn.LayerNorm(vision.norm.normalized_shape, eps=vision.norm.eps, elementwise_affine=False)
            self.projector = Product([model.projector], True, vision.norm.weight, vision.norm.bias)
        else:
            self.norm, self.projector = vision.norm, Product([model.projector], True)

    def forward(self, images_VHWC: Tensor) -> Tensor:
        """See the class."""
        x_VND = self.patches(images_VHWC)
        for layer in self.layers:
            x_VND = layer(x_VND)
        tokens_VND: Tensor = self.projector(self.norm(x_VND))
        return tokens_VND


class Cached(NamedTuple):
    """What the action expert reads, however many steps it takes.

    Attributes:
        k, v: rotated keys, and values, of the prefix [Y, S, G, K].
        cos, sin: rotary tables of the queries, float32 [Q, 1, K / 2].
        bias: what is added to logits over prefix and queries, float32 [1|Q, S + Q].
        state_1D: pi0's state token; None for other models.
    """

    k: Tensor
    v: Tensor
    cos: Tensor
    sin: Tensor
    bias: Tensor
    state_1D: Tensor | None = None


class PrefixStage(nn.Module):
    """Image tokens, prompt and state -> all that the action expert reads (see `Cached`).

    Args:
        model: whose backbone.
        fusions: changes to the layers.
        attend: see `ATTENTIONS`.
        consume: take the layers out of the model as they are packed, so that memory never holds both.
    """

    def __init__(self, model: KiVla, fusions: Fusions, attend: str = 'matmul', consume: bool = False) -> None:
        super().__init__()
        self.head_dim, self.embed, self.state_proj = model.config.backbone.head_dim, model.embed, model.state_proj
        self.action_tokens = model.config.action_tokens
        self.state_in = model.expert.state_in if isinstance(model.expert, Expert) else None
        self.pointer = model.pointer
        self.points_after = 0 if model.config.pointer is None else model.config.pointer.layer
        self.norm = norm_of(model.backbone.norm, Fusions(folded=False))[0] if model.pointer is not None else None
        self.attend = ATTENTIONS[attend]
        self.layers = nn.ModuleList()
        for index, layer in enumerate(model.backbone.layers):
            kind = PackedLastLayer if index == len(model.backbone.layers) - 1 else PackedLayer
            self.layers.append(kind(cast(GemmaLayer, layer), fusions))
            if consume:
                model.backbone.layers[index] = nn.Identity()

    def forward(
        self, tokens_VND: Tensor, image_mask_V: Tensor, prompt_L: Tensor, prompt_mask_L: Tensor, state_S: Tensor
    ) -> Cached:
        """`state_S` is the normalised state; only a state token reads it."""
        mask_BS = masks.prefix_mask(
            image_mask_V[None], tokens_VND.shape[1], prompt_mask_L[None], self.state_proj is not None
        )
        rope = rope_table(masks.positions(mask_BS)[0], self.head_dim)
        bias_1S = bias_of(mask_BS)

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self.attend(q, k, v, bias_1S)

        x_SD = prefix_inputs(self.embed, self.state_proj, tokens_VND.flatten(0, 1), prompt_L, state_S)
        *layers, last = self.layers
        x_SD, keys, values = run_layers(layers[: self.points_after], x_SD, rope, lambda index: attend)
        if self.pointer is not None and self.norm is not None:
            passing_1D = self.norm(x_SD[masks.last_valid(mask_BS)])[0]
            state_S = torch.cat([state_S, self.pointer(passing_1D)[0].to(state_S.dtype)])
        x_SD, more_keys, more_values = run_layers(layers[self.points_after :], x_SD, rope, lambda index: attend)
        k, v = last(x_SD, rope)
        keys, values = (*keys, *more_keys, k), (*values, *more_values, v)
        return Cached(torch.stack(keys), torch.stack(values), *self._queries(mask_BS, state_S))

    def _queries(self, mask_BS: Tensor, state_S: Tensor) -> tuple[Tensor, ...]:
        """Where the queries of the action expert stand and what they see, the same for every step."""
        Q = self.action_tokens + (self.state_in is not None)
        rope = rope_table(masks.positions_after(masks.lengths(mask_BS), Q)[0], self.head_dim)
        if self.state_in is None:
            return *rope, bias_of(torch.cat([mask_BS, torch.ones_like(mask_BS[:, :1]).expand(1, Q)], dim=1))
        own_QQ = masks.state_then_actions(Q, mask_BS.device)[0]
        state_1D = self.state_in(state_S[None].to(self.state_in.weight.dtype))
        return *rope, bias_of(torch.cat([mask_BS.expand(Q, -1), own_QQ], dim=1)), state_1D


def bias_of(mask: Tensor) -> Tensor:
    """0 where `mask` is True, the least float32 elsewhere."""
    return torch.where(mask, 0.0, LEAST)


def expert_of(model: KiVla) -> Expert:
    """The action expert of a model, for which alone there are packed stages.

    Raises:
        VlaError: another head.
    """
    if not isinstance(model.expert, Expert):
        raise VlaError(
            f'model.head: {model.config.head!r} is no expert; take `ki_vla.engine.heads.action_stage` for any head.'
        )
    return model.expert


def layer_attention(attend: Attention, cached: Cached, layer: int) -> Attend:
    """Queries of one layer look at the prefix and at themselves."""

    def attention(q_QNK: Tensor, k_QGK: Tensor, v_QGK: Tensor) -> Tensor:
        k, v = torch.cat([cached.k[layer], k_QGK]), torch.cat([cached.v[layer], v_QGK])
        return attend(q_QNK, k, v, cached.bias)

    return attention


class Denoiser(nn.Module):
    """A flow field on a cached prefix, and its steps.

    `row` stands for the flow time: the number of an Euler step, as a number or int64 [1], or one per action, int64 [H],
    where some are given and have their own time, row `steps`, which is tau = 1.

    Args:
        steps: Euler steps.
        device: of the tables.
    """

    tau_T: Tensor
    strength_T: Tensor

    def __init__(self, steps: int, device: torch.device) -> None:
        super().__init__()
        self.steps = steps
        tau_T = torch.cat([flow.step_times(steps, device), torch.ones(1, device=device)])
        self.register_buffer('tau_T', tau_T, persistent=False)
        self.register_buffer('strength_T', rtc.guidance_strength(tau_T), persistent=False)

    def field(self, cached: Cached, noisy_HA: Tensor, row: int | Tensor) -> Tensor:
        """The flow field omega - a, float32 [H, A]."""
        raise NotImplementedError

    def plain(self, cached: Cached, noisy_HA: Tensor, row: int | Tensor) -> Tensor:
        """One Euler step."""
        return flow.step(noisy_HA, self.field(cached, noisy_HA, row), 1.0 / self.steps)

    def trained(
        self, cached: Cached, noisy_HA: Tensor, row: int | Tensor, previous_HA: Tensor, given_H: Tensor
    ) -> Tensor:
        """One step where the actions `given_H` are those of the old chunk, at their own time (see `rtc`)."""
        given_H1 = given_H[:, None]
        noisy_HA = torch.where(given_H1, previous_HA, noisy_HA)
        return torch.where(given_H1, previous_HA, self.plain(cached, noisy_HA, torch.where(given_H, self.steps, row)))

    def guided(
        self, cached: Cached, noisy_HA: Tensor, row: int | Tensor, previous_HA: Tensor, weights_H: Tensor
    ) -> Tensor:
        """One step, pulled towards the old chunk (see `rtc.guided_field`)."""
        field_HA = rtc.guided_field(
            lambda point_HA: self.field(cached, point_HA, row),
            noisy_HA,
            self.tau_T[row].reshape(1),
            self.strength_T[row],
            previous_HA,
            weights_H,
        )
        return flow.step(noisy_HA, field_HA, 1.0 / self.steps)


class ActionStage(Denoiser):
    """The action expert's field.

    Args:
        model: with head 'expert'.
        steps: Euler steps.
        fusions: changes to the layers.
        attend: see `ATTENTIONS`.
        consume: see `PrefixStage`.
    """

    def __init__(
        self, model: KiVla, steps: int, fusions: Fusions, attend: str = 'matmul', consume: bool = False
    ) -> None:
        expert = expert_of(model)
        super().__init__(steps, expert.action_in.weight.device)
        self.attend = ATTENTIONS[attend]
        self.times = TimeModulation(expert, self.tau_T)
        self.action_in = Product([first_layer(expert)], True)
        self.steps_per_token = expert.steps_per_token
        self.time_out = None if expert.adaptive else Product([expert.time_out], True)
        self.layers = nn.ModuleList()
        for index, layer in enumerate(expert.layers):
            self.layers.append(PackedLayer(cast(GemmaLayer, layer), fusions))
            if consume:
                expert.layers[index] = nn.Identity()
        self.norm, scale = norm_of(expert.norm, fusions)
        self.action_out = Product([expert.action_out], True, scale)

    def field(self, cached: Cached, noisy_HA: Tensor, row: int | Tensor) -> Tensor:
        """The flow field omega - a, float32 [H, A]."""
        tokens_HA = grouped(noisy_HA, self.steps_per_token)
        if isinstance(row, Tensor) and len(row) > 1:
            row = row[:: self.steps_per_token]
        x_QD = self.action_in(tokens_HA.to(self.action_in.weights[0].dtype))
        if self.time_out is not None:
            x_QD = self.time_out(F.silu(x_QD + self.times.bias[row]))
        if cached.state_1D is not None:
            x_QD = torch.cat([cached.state_1D, x_QD])
            if isinstance(row, Tensor) and len(row) > 1:
                # The state is clean: its own tau is 1.
                row = torch.cat([torch.full_like(row[:1], self.steps), row])
        rope = cached.cos, cached.sin
        for index, layer in enumerate(self.layers):
            cond = self._rows(row, 2 * index, 2 * index + 1)
            x_QD, _, _ = layer(x_QD, rope, layer_attention(self.attend, cached, index), cond)
        rows = self._rows(row, 2 * len(self.layers))
        x_QD, _ = self.norm(x_QD, rows and rows[0])
        field_HA: Tensor = self.action_out(x_QD[-len(tokens_HA) :]).float()
        return field_HA.reshape(noisy_HA.shape)

    def _rows(self, row: int | Tensor, *norms: int) -> tuple[Rows, ...] | None:
        return tuple(self.times.rows(row, norm) for norm in norms) if self.times.adaptive else None


def first_layer(expert: Expert) -> nn.Linear:
    """From actions to the expert; pi0's also goes through the half of the time MLP's first layer that reads actions."""
    if expert.adaptive:
        return expert.action_in
    source, half = expert.action_in, expert.time_in.weight[:, : expert.width].detach().float()
    joined = nn.Linear(source.in_features, expert.width, device=source.weight.device, dtype=source.weight.dtype)
    with torch.no_grad():
        joined.weight.copy_(half @ source.weight.float())
        joined.bias.copy_(half @ source.bias.float())
    return joined


KINDS = ('plain', 'trained', 'guided')


def split_carried(kind: str, tensors: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Cached]:
    """The tensors of a step after its actions and row: what it carries from the old chunk, and what it reads."""
    count = 0 if kind == 'plain' else 2
    return tensors[:count], Cached(*tensors[count:])


class Step(nn.Module):
    """One Euler step of one kind, its tensors in a row: noisy actions [H, A] -> the next ones.

    Args:
        stage: the expert.
        kind: of `KINDS`.
    """

    def __init__(self, stage: Denoiser, kind: str = 'plain') -> None:
        super().__init__()
        self.stage, self.kind = stage, kind

    def forward(self, noisy_HA: Tensor, row: Tensor, *rest: Tensor) -> Tensor:
        """`row` int64 [1]; then previous_HA and given_H or weights_H, unless the kind is plain; then `Cached`."""
        carried, cached = split_carried(self.kind, rest)
        stepped_HA: Tensor = getattr(self.stage, self.kind)(cached, noisy_HA, row, *carried)
        return stepped_HA


class Loop(nn.Module):
    """All Euler steps of one kind: noise [H, A] -> actions [H, A]; `Step`'s tensors without `row`."""

    def __init__(self, stage: Denoiser, kind: str = 'plain') -> None:
        super().__init__()
        self.stage, self.kind = stage, kind

    def forward(self, noise_HA: Tensor, *rest: Tensor) -> Tensor:
        """See the class."""
        carried, cached = split_carried(self.kind, rest)
        x_HA = noise_HA
        for row in range(self.stage.steps):
            x_HA = getattr(self.stage, self.kind)(cached, x_HA, row, *carried)
        return x_HA


def pure(step: Step, tensors: tuple[Tensor, ...], symbolic: bool = False) -> nn.Module:
    """A guided step, its backward pass written out: a graph of tensor operations without autograd.

    Exporters, compilers and CUDA graphs take that; a call of `autograd.grad` they do not.

    Args:
        step: of any kind.
        tensors: example inputs.
        symbolic: keep the number of prefix tokens a symbol.
    """
    from torch._decomp import get_decompositions
    from torch.fx.experimental.proxy_tensor import make_fx

    traced = make_fx(
        lambda *given: step(*given),
        # ONNX has no operator for it: pi0's time MLP.
        decomposition_table=cast(Any, get_decompositions([torch.ops.aten.silu_backward])),
        tracing_mode='symbolic' if symbolic else 'real',
        _allow_non_fake_inputs=True,
    )
    return traced(*tensors)
