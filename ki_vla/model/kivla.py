"""KiVla: images, a prompt and a state in; tokens and action chunks out.

`Vision` and `projector` turn every view into tokens, `embed` turns the prompt into tokens. `Backbone.prefix` reads them
once and keeps the keys and values of every layer in a `Prefix`. Target tokens (`token_hidden`), the action expert
(`field`) and the sampler (`denoise`) attend to that prefix. Training and inference use the same calls.

Shape legend: B batch, V views, N tokens a view, L prompt, S prefix tokens, T target tokens, R draws of (tau, noise),
H horizon, A action dims, D width, G key/value heads, K head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ki_vla.errors import VlaError
from ki_vla.model import flow, masks
from ki_vla.model.config import ModelConfig
from ki_vla.model.dense import DenseHeads
from ki_vla.model.expert import Expert, ParallelHead, SharedHead
from ki_vla.model.gemma import Backbone, Context
from ki_vla.model.insulation import graded
from ki_vla.model.pointer import PlacePointer
from ki_vla.model.siglip import Vision
from ki_vla.objective.batch import Batch, check_inputs
from ki_vla.objective.losses import Losses, action_loss, masked_mean, token_losses
from ki_vla.objective.recipes import OURS, Recipe

# A field or outputs, and the keys and values of every layer.
FieldOutputs = tuple[Tensor, tuple[Tensor, ...], tuple[Tensor, ...]]
HEAD_CLASSES: dict[str, type[Expert | SharedHead | ParallelHead]] = {
    'expert': Expert,
    'shared': SharedHead,
    'parallel': ParallelHead,
}


@dataclass(frozen=True)
class Prefix:
    """What the backbone leaves of images, prompt and state.

    Attributes:
        k, v: rotated keys and values, indexed by layer: one tensor [layers, B, S, G, K] (from `prefill`), or a tuple of
            [B, S, G, K] (in training, where stacking would only copy).
        mask_BS: which of the S tokens are valid.
        hidden_BD: normed output at the last valid token, from which the first target is predicted; None if not asked
            for.
        passing_BnD: the normed state of the last valid token, and after it of the image tokens of the first view, on
            their way through the layers: one [B, 1 + N, D] for each of `prefix(after=...)`.
        state_BS: kept for experts that read the state themselves (pi0).
        said_BC: what a pointer says, which such an expert hears beside the state; None without one.
    """

    k: Tensor | tuple[Tensor, ...]
    v: Tensor | tuple[Tensor, ...]
    mask_BS: Tensor
    hidden_BD: Tensor | None = None
    passing_BnD: tuple[Tensor, ...] = ()
    state_BS: Tensor | None = None
    said_BC: Tensor | None = None

    def part(self, rows: slice) -> Prefix:
        """Of some of the examples; without what passed on the way."""
        k, v = (
            kept[:, rows] if isinstance(kept, Tensor) else tuple(each[rows] for each in kept)
            for kept in (self.k, self.v)
        )
        hidden_BD, state_BS, said_BC = (
            None if each is None else each[rows] for each in (self.hidden_BD, self.state_BS, self.said_BC)
        )
        return Prefix(k, v, self.mask_BS[rows], hidden_BD, (), state_BS, said_BC)

    @property
    def length_B(self) -> Tensor:
        """Valid tokens, int64 [B]."""
        return masks.lengths(self.mask_BS)

    @property
    def context(self) -> Context:
        """The prefix as a context that every query may see."""
        return Context(self.k, self.v, self.mask_BS[:, None, :])

    def heard(self, insulate: bool) -> Tensor | None:
        """What the expert's state token is made of [B, S + C]: the state, then what a pointer says."""
        if self.state_BS is None or self.said_BC is None:
            return self.state_BS
        said_BC = graded(self.said_BC, 0.0) if insulate else self.said_BC
        return torch.cat([self.state_BS, said_BC.to(self.state_BS.dtype)], dim=-1)


def embedded(embed: nn.Embedding, ids: Tensor) -> Tensor:
    """Token ids [...] -> backbone inputs [..., D]; text is scaled by sqrt(D), image tokens are not (Gemma)."""
    found: Tensor = embed(ids) * embed.embedding_dim**0.5
    return found


def prefix_inputs(
    embed: nn.Embedding, state_proj: nn.Linear | None, image_tokens: Tensor, prompt: Tensor, state: Tensor
) -> Tensor:
    """What the backbone reads: image tokens [..., P, D], the embedded prompt [..., L], a state token if there is one.

    The result [..., S, D] has the dtype of the image tokens; `masks.prefix_mask` is its validity.
    """
    dtype = image_tokens.dtype
    parts = [image_tokens, embedded(embed, prompt).to(dtype)]
    if state_proj is not None:
        parts.append(state_proj(state.to(state_proj.weight.dtype))[..., None, :].to(dtype))
    return torch.cat(parts, dim=-2)


class KiVla(nn.Module):
    """The model. `skeleton` builds it without memory; `initialise` it to train from scratch."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.checkpointing = False
        D = config.backbone.width
        self.vision = Vision(config.vision)
        self.projector = nn.Linear(config.vision.width, D)
        self.embed = nn.Embedding(config.vocab_size, D)
        self.backbone = Backbone(config.backbone)
        self.state_proj = nn.Linear(config.state_dim, D) if config.state_in_prefix else None
        self.pointer = None if config.pointer is None else PlacePointer(D, config.pointer.cells)
        head = HEAD_CLASSES.get(config.head)
        self.expert = None if head is None else head(config)
        self.dense = None if config.dense is None else DenseHeads(config)

    # The prefix

    def encode(self, images_BVCHW: Tensor) -> Tensor:
        """Camera views, uint8 or float in [-1, 1] -> backbone inputs [B, V * N, D]; all views go through at once."""
        dtype = self.projector.weight.dtype
        if images_BVCHW.dtype == torch.uint8:
            images_BVCHW = images_BVCHW.to(dtype) / 127.5 - 1.0
        B = len(images_BVCHW)
        tokens_IND = self.vision(images_BVCHW.to(dtype).flatten(0, 1), self.checkpointing)
        projected_IND: Tensor = self.projector(tokens_IND)
        return projected_IND.reshape(B, -1, self.config.backbone.width)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> backbone inputs [..., D]; text is scaled by sqrt(D), image tokens are not."""
        return embedded(self.embed, ids)

    def prefix(
        self,
        image_tokens_BPD: Tensor,
        image_mask_BV: Tensor,
        prompt_BL: Tensor,
        prompt_mask_BL: Tensor,
        state_BS: Tensor,
        hidden: bool = False,
        after: Sequence[int] = (),
    ) -> Prefix:
        """Run the backbone over encoded images, prompt and (continuous) state token.

        Args:
            image_tokens_BPD: from `encode`.
            image_mask_BV: False where a camera is missing.
            prompt_BL: token ids.
            prompt_mask_BL: their validity.
            state_BS: normalised state; read by the continuous and suffix representations only.
            hidden: also compute the output at the last valid token, for tokens to be predicted.
            after: also keep what passes after so many layers of the backbone, ascending; for training heads. With a
                pointer its layer is one of them.
        """
        x_BSD = prefix_inputs(self.embed, self.state_proj, image_tokens_BPD, prompt_BL, state_BS)
        mask_BS = masks.prefix_mask(
            image_mask_BV, self.config.vision.tokens, prompt_mask_BL, self.state_proj is not None
        )
        positions_BS = masks.positions(mask_BS)
        rows_Bn = (
            masks.last_valid(mask_BS)[:, None] if hidden else mask_BS.new_zeros(len(mask_BS), 0, dtype=torch.int64)
        )
        pointer = self.config.pointer
        if pointer is not None and not after:
            after = (pointer.layer,)
        k, v, hidden_BnD, passed = self.backbone.prefix(
            x_BSD, mask_BS, positions_BS, rows_Bn, self.checkpointing, after
        )
        last_B11 = masks.last_valid(mask_BS)[:, None, None]
        passing = tuple(
            torch.cat([torch.take_along_dim(each, last_B11, dim=1), each[:, : self.config.vision.tokens]], dim=1)
            for each in passed
        )
        said_BC = None
        if pointer is not None and self.pointer is not None:
            said_BC = self.pointer(passing[tuple(after).index(pointer.layer)][:, 0])
        hidden_BD = hidden_BnD[:, 0] if hidden and hidden_BnD is not None else None
        return Prefix(k, v, mask_BS, hidden_BD, passing, state_BS, said_BC)

    @torch.no_grad()
    def prefill(
        self,
        images_BVCHW: Tensor,
        image_mask_BV: Tensor,
        prompt_BL: Tensor,
        prompt_mask_BL: Tensor,
        state_BS: Tensor,
        hidden: bool = False,
    ) -> Prefix:
        """From raw inputs to a cached prefix, for inference; keys and values are stacked over layers.

        Raises:
            VlaError: an input does not fit the model.
        """
        check_inputs(images_BVCHW, image_mask_BV, prompt_BL, prompt_mask_BL, state_BS, self.config)
        found = self.prefix(self.encode(images_BVCHW), image_mask_BV, prompt_BL, prompt_mask_BL, state_BS, hidden)
        return replace(found, k=torch.stack(list(found.k)), v=torch.stack(list(found.v)))

    # What attends to it

    def token_hidden(
        self, prefix: Prefix, target_BT: Tensor, target_mask_BT: Tensor, seen: Context | None = None
    ) -> Tensor:
        """Normed outputs from which each target is predicted [B, T, D]: the first from the prefix's last, and so on.

        Args:
            prefix: with `hidden_BD`.
            target_BT: token ids; the last one is predicted, not read.
            target_mask_BT: their validity.
            seen: what targets see besides themselves; the prefix, unless a recipe says otherwise.

        Raises:
            VlaError: the prefix has no last output.
        """
        if prefix.hidden_BD is None:
            raise VlaError('token_hidden: the prefix has no last output; make it with hidden=True.')
        first_B1D = prefix.hidden_BD[:, None]
        read = target_BT.shape[1] - 1
        if read < 1:
            return first_B1D[:, : target_BT.shape[1]]
        x_B1TD = self.embed_tokens(target_BT[:, None, :-1])
        sees_own = masks.causal(read, target_BT.device) & target_mask_BT[:, None, :-1]
        positions_BT = masks.positions_after(prefix.length_B, read)
        hidden_B1TD, _, _ = self.backbone.segment(
            x_B1TD, positions_BT, seen or prefix.context, sees_own, self.checkpointing
        )
        return torch.cat([first_B1D, hidden_B1TD[:, 0]], dim=1)

    def logits(self, hidden: Tensor) -> Tensor:
        """Normed outputs [..., D] -> float32 logits over the vocabulary [..., C]."""
        return nn.functional.linear(hidden, self.embed.weight).float()

    def field(
        self,
        prefix: Prefix,
        noisy: Tensor,
        tau: Tensor,
        insulate: bool = True,
    ) -> Tensor:
        """The flow field omega - a at noisy actions.

        Args:
            prefix: the context.
            noisy: [B, H, A], or [B, R, H, A] for several draws that share the prefix.
            tau: [B] or [B, R] for one time a chunk; [B, H] or [B, R, H] for one a step.
            insulate: stop the gradient towards the prefix.

        Returns:
            Like `noisy`.
        """
        if noisy.ndim == 3:
            return self._field(prefix, noisy[:, None], tau[:, None], insulate)[0][:, 0]
        return self._field(prefix, noisy, tau, insulate)[0]

    def _field(self, prefix: Prefix, noisy_BRHA: Tensor, tau: Tensor, insulate: bool) -> FieldOutputs:
        if tau.ndim == 2:
            tau = tau[..., None]
        if isinstance(self.expert, Expert):
            Q = self.config.action_tokens + (self.expert.state_in is not None)
            positions_BQ = masks.positions_after(prefix.length_B, Q)
            found: FieldOutputs = self.expert(
                noisy_BRHA, tau, prefix.context, positions_BQ, prefix.heard(insulate), insulate, self.checkpointing
            )
            return found
        if isinstance(self.expert, SharedHead):
            hidden_BRHD, k, v = self._after_prefix(prefix, self.expert.embed(noisy_BRHA, tau))
            return self.expert.action_out(hidden_BRHD), k, v
        raise VlaError(f'model.head {self.config.head!r} has no flow field; use an expert or shared head.')

    def parallel_actions(self, prefix: Prefix) -> Tensor:
        """All steps of the chunk at once, without noise [B, H, A] (head 'parallel')."""
        if not isinstance(self.expert, ParallelHead):
            raise VlaError(f"model.head {self.config.head!r} does not decode in parallel; that needs 'parallel'.")
        hidden_BRHD, _, _ = self._after_prefix(prefix, self.expert.embed(len(prefix.mask_BS)))
        return self.expert.decode(hidden_BRHD)[:, 0]

    def _after_prefix(self, prefix: Prefix, x_BRHD: Tensor) -> FieldOutputs:
        H = x_BRHD.shape[2]
        positions_BH = masks.positions_after(prefix.length_B, H)
        own = masks.everyone(H, x_BRHD.device)
        return self.backbone.segment(x_BRHD, positions_BH, prefix.context, own, self.checkpointing)

    # Training

    def forward(
        self,
        batch: Batch,
        recipe: Recipe = OURS,
        draws: int = 1,
        noise_BRHA: Tensor | None = None,
        tau: Tensor | None = None,
        generator: torch.Generator | None = None,
        given_BRH: Tensor | None = None,
        teacher: KiVla | None = None,
        prefix: Prefix | None = None,
    ) -> Losses:
        """All losses of a batch under a recipe.

        Args:
            batch: see `Batch.check`.
            recipe: which losses, which gradients.
            draws: (tau, noise) draws for each backbone pass; under insulation more of them cost little.
            noise_BRHA: in place of drawn noise.
            tau: in place of drawn times, [B, R] or [B, R, H].
            generator: for reproducible draws.
            given_BRH: actions that are given clean and carry no loss, with the times that belong to them
                (`flow.give_first_actions`): training for real-time chunking.
            teacher: a frozen copy of the start, for recipes with `consistency`.
            prefix: of this batch, from `prefill`, for recipes that leave the backbone as it is.

        Raises:
            VlaError: the batch does not fit the model, or the recipe does not.
        """
        batch.check(self.config)
        if given_BRH is not None and tau is None:
            raise VlaError('given_BRH: actions are given at times of their own; pass tau as well.')
        if recipe.targets_see_actions and draws != 1:
            raise VlaError(
                f'recipe {recipe.name}: target tokens see the noisy actions, so there can be only 1 draw, not {draws}.'
            )
        if recipe.consistency and teacher is None:
            raise VlaError(f'recipe {recipe.name}: consistency is with a frozen copy of the start; pass it as teacher.')
        if prefix is not None:
            if not recipe.frozen:
                raise VlaError(f'recipe {recipe.name}: it trains the backbone, so the prefix cannot be given.')
            flow_loss, _ = self._action_loss(prefix, batch, recipe, draws, noise_BRHA, tau, generator, given_BRH)
            return Losses.of_actions(flow_loss, recipe.alpha, batch.action_mask_BHA.sum())
        if not recipe.hears:
            batch = replace(batch, prompt_mask_BL=torch.zeros_like(batch.prompt_mask_BL))
        tokens_BPD = self.encode(batch.images_BVCHW)
        prefix = self.prefix(
            tokens_BPD,
            batch.image_mask_BV,
            batch.prompt_BL,
            batch.prompt_mask_BL,
            batch.state_BS,
            hidden=recipe.token_loss,
            after=self.config.dense_layers if recipe.sees and recipe.token_loss else (),
        )
        zero = batch.actions_BHA.new_zeros((), dtype=torch.float32)
        flow_loss, seen = zero, None
        action_count = batch.action_mask_BHA.sum()
        if recipe.action_loss:
            flow_loss, seen = self._action_loss(prefix, batch, recipe, draws, noise_BRHA, tau, generator, given_BRH)
        tokens = text = fast = dense = zero
        dense_count = action_count.new_zeros(())
        if self.dense is not None and recipe.sees:
            passing_BnD = prefix.passing_BnD if recipe.token_loss else ()
            dense, dense_count = self.dense.loss(tokens_BPD, passing_BnD, batch, self.pointer)
        text_count = fast_count = action_count.new_zeros(())
        if recipe.token_loss:
            tokens, text, fast, text_count, fast_count = self._token_loss(prefix, batch, recipe, seen, teacher)
        total = tokens + recipe.alpha * flow_loss + dense
        return Losses(
            total, tokens, text, fast, flow_loss, text_count, fast_count, action_count, dense, dense_count
        )  # fmt: skip

    def _action_loss(
        self,
        prefix: Prefix,
        batch: Batch,
        recipe: Recipe,
        draws: int,
        noise_BRHA: Tensor | None,
        tau: Tensor | None,
        generator: torch.Generator | None,
        given_BRH: Tensor | None,
    ) -> tuple[Tensor, Context | None]:
        if batch.first_acting and not recipe.targets_see_actions:
            # At least one, as below: several processes take the same path, or their collectives do not meet.
            acting = slice(min(batch.first_acting, batch.size - 1), None)
            batch, prefix = batch.part(acting), prefix.part(acting)
            noise_BRHA, tau, given_BRH = (
                None if each is None else each[acting] for each in (noise_BRHA, tau, given_BRH)
            )
        actions_B1HA, mask_B1HA = batch.actions_BHA[:, None], batch.action_mask_BHA[:, None]
        if recipe.loss == 'l1':
            return action_loss(self.parallel_actions(prefix)[:, None], actions_B1HA, mask_B1HA, 'l1'), None
        B, H, A = batch.actions_BHA.shape
        device = batch.actions_BHA.device
        if noise_BRHA is None:
            noise_BRHA = flow.sample_noise((B, draws, H, A), generator, device)
        if tau is None:
            tau = flow.sample_tau((B, draws), generator, device)
        if given_BRH is not None:
            mask_B1HA = mask_B1HA & ~given_BRH[..., None]
        noisy_BRHA = flow.noised(actions_B1HA, noise_BRHA, tau if tau.ndim == 3 else tau[..., None])
        if recipe.passes < 1.0:
            k, v = (tuple(graded(each, recipe.passes) for each in kept) for kept in (prefix.k, prefix.v))
            said_BC = None if prefix.said_BC is None else graded(prefix.said_BC, recipe.passes)
            prefix = replace(prefix, k=k, v=v, said_BC=said_BC)
        field, k, v = self._field(prefix, noisy_BRHA, tau, recipe.insulate)
        loss = action_loss(field, flow.target(actions_B1HA, noise_BRHA), mask_B1HA, 'flow')
        seen = self._with_actions(prefix, k, v) if recipe.targets_see_actions else None
        return loss, seen

    @staticmethod
    def _with_actions(prefix: Prefix, k_BRQGK: tuple[Tensor, ...], v_BRQGK: tuple[Tensor, ...]) -> Context:
        """Prefix and noisy actions as one context (HybridVLA)."""
        k = tuple(torch.cat([a, b[:, 0]], dim=1) for a, b in zip(prefix.k, k_BRQGK, strict=True))
        v = tuple(torch.cat([a, b[:, 0]], dim=1) for a, b in zip(prefix.v, v_BRQGK, strict=True))
        actions_BQ = prefix.mask_BS.new_ones(len(prefix.mask_BS), k_BRQGK[0].shape[2])
        return Context(k, v, torch.cat([prefix.mask_BS, actions_BQ], dim=1)[:, None, :])

    def _token_loss(
        self, prefix: Prefix, batch: Batch, recipe: Recipe, seen: Context | None, teacher: KiVla | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        if batch.first_acting is not None and recipe.targets == 'none':
            speaking = slice(None, max(batch.first_acting, 1))
            batch, prefix = batch.part(speaking), prefix.part(speaking)
        has_actions_B = batch.has_actions_B
        wanted_B = (has_actions_B & (recipe.targets != 'none')) | (~has_actions_B & recipe.vlm_data)
        wanted_BT = batch.loss_mask_BT & wanted_B[:, None]
        hidden_BTD = self.token_hidden(prefix, batch.target_BT, batch.target_mask_BT, seen)
        # At every position: picking out the wanted ones has a shape that only the device knows, and the host would
        # wait for it. Logits are a hundredth of a step's arithmetic.
        loss_P = token_losses(hidden_BTD.flatten(0, 1), self.embed.weight, batch.target_BT.flatten())
        loss_BT, fast_BT = loss_P.view_as(wanted_BT), wanted_BT & batch.fast_BT
        text_BT = wanted_BT & ~batch.fast_BT
        if teacher is not None and recipe.consistency:
            kept_BT = self._divergence(hidden_BTD, teacher, batch)
            loss_BT = loss_BT + recipe.consistency * torch.where(text_BT, kept_BT, 0.0)
        return (
            masked_mean(loss_BT, wanted_BT),
            masked_mean(loss_BT, text_BT),
            masked_mean(loss_BT, fast_BT),
            text_BT.sum(),
            fast_BT.sum(),
        )

    def _divergence(self, hidden_BTD: Tensor, teacher: KiVla, batch: Batch) -> Tensor:
        """KL divergence of what this model says at every target from what the teacher says [B, T]."""
        with torch.no_grad():
            prefix = teacher.prefix(
                teacher.encode(batch.images_BVCHW),
                batch.image_mask_BV,
                batch.prompt_BL,
                batch.prompt_mask_BL,
                batch.state_BS,
                hidden=True,
            )
            kept = teacher.logits(teacher.token_hidden(prefix, batch.target_BT, batch.target_mask_BT))
        said = nn.functional.log_softmax(self.logits(hidden_BTD), dim=-1)
        divergence = nn.functional.kl_div(
            said, nn.functional.log_softmax(kept, dim=-1), reduction='none', log_target=True
        )
        found: Tensor = divergence.sum(-1)
        return found

    # Inference

    @torch.no_grad()
    def denoise(self, prefix: Prefix, noise: Tensor, steps: int = 10) -> Tensor:
        """Integrate the field from noise to an action chunk.

        Args:
            prefix: from `prefill`.
            noise: [B, H, A], or [B, R, H, A] for several candidates.
            steps: Euler steps.

        Returns:
            Normalised actions like `noise`. For real-time chunking see `rtc`.

        Raises:
            VlaError: the noise does not have the shape of chunks for this prefix, or there are no steps.
        """
        B, H, A = len(prefix.mask_BS), self.config.horizon, self.config.action_dim
        if noise.shape[0] != B or noise.shape[-2:] != (H, A) or noise.ndim not in (3, 4):
            raise VlaError(f'noise: shape {tuple(noise.shape)} should be ({B}, {H}, {A}) or ({B}, draws, {H}, {A}).')
        if steps < 1:
            raise VlaError(f'steps: {steps} must be at least 1.')
        return flow.euler(self.field_at(prefix), noise, steps)

    def field_at(self, prefix: Prefix) -> flow.Field:
        """The field as a function of (noisy, tau) alone, for samplers."""

        def field(noisy: Tensor, tau: Tensor) -> Tensor:
            return self.field(prefix, noisy, tau.expand(noisy.shape[:-1]) if tau.shape[-1] > 1 else tau[..., 0])

        return field


class _WithoutInitialising(TorchFunctionMode):
    """Skips the random initialisation of every layer.

    On the meta device PyTorch does that through its compiler, whose import takes over a second and loads Triton.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, '__module__', '') == nn.init.__name__:
            return kwargs['tensor'] if 'tensor' in kwargs else args[0]
        return func(*args, **kwargs)


def skeleton(config: ModelConfig) -> KiVla:
    """The model without memory: every weight is on the meta device, until `load_state_dict(..., assign=True)`."""
    with torch.device('meta'), _WithoutInitialising():
        return KiVla(config)
