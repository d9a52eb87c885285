"""The model against code that we did not write: transformers' PaliGemma and PI0, with the same weights, in float32."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ki_vla.model.config import GemmaConfig, ModelConfig
from ki_vla.model.kivla import KiVla

transformers = pytest.importorskip('transformers')

TOLERANCE = 1e-4
PartName = Callable[[str, str], str]
PLACES = {
    'vision.patch': 'vision_tower.embeddings.patch_embedding',
    'vision.position': 'vision_tower.embeddings.position_embedding.weight',
    'vision.norm': 'vision_tower.post_layernorm',
    'projector': 'multi_modal_projector.linear',
    'embed': 'language_model.embed_tokens',
    'backbone.norm': 'language_model.norm',
}


def their_name(ours: str, part_name: PartName) -> str:
    """The name below transformers' PaliGemmaModel of one of our vision-language weights."""
    words = ours.split('.')
    if words[1] == 'layers':
        place = 'vision_tower.encoder' if words[0] == 'vision' else 'language_model'
        return '.'.join([place, 'layers', words[2], part_name(words[0], words[3]), *words[4:]])
    for mine, theirs in PLACES.items():
        if ours == mine or ours.startswith(mine + '.'):
            return theirs + ours.removeprefix(mine)
    raise KeyError(ours)


def vision_language(state: dict[str, Tensor], part_name: PartName) -> dict[str, Tensor]:
    """Our vision-language weights under their names."""
    return {their_name(name, part_name): value for name, value in state.items() if not name.startswith('expert.')}


def load(theirs: torch.nn.Module, weights: dict[str, Tensor], tied: set[str]) -> None:
    """Load every weight; nothing may be left over on either side but what is tied to another."""
    have = set(theirs.state_dict())
    # Older releases keep one more level of names in the vision tower.
    if any('vision_model' in name for name in have):
        weights = {
            name.replace('vision_tower.', 'vision_tower.vision_model.'): value for name, value in weights.items()
        }
    assert set(weights) - have == set()
    assert have - set(weights) == tied & have
    theirs.load_state_dict(weights, strict=False)


def gemma_fields(config: GemmaConfig, vocab_size: int) -> dict[str, object]:
    """A Gemma of theirs."""
    return {
        'model_type': 'gemma',
        'hidden_size': config.width,
        'num_hidden_layers': config.depth,
        'intermediate_size': config.mlp,
        'num_attention_heads': config.heads,
        'num_key_value_heads': config.kv_heads,
        'head_dim': config.head_dim,
        'vocab_size': vocab_size,
        'hidden_activation': 'gelu_pytorch_tanh',
        'attn_implementation': 'eager',
    }


def paligemma_config(config: ModelConfig) -> object:
    """Their PaliGemma in our structure; the image token stands outside our vocabulary, as in the public checkpoints."""
    vision = config.vision
    return transformers.PaliGemmaConfig(
        text_config=gemma_fields(config.backbone, config.vocab_size + 8),
        vision_config={
            'model_type': 'siglip_vision_model',
            'hidden_size': vision.width,
            'intermediate_size': vision.mlp,
            'num_hidden_layers': vision.depth,
            'num_attention_heads': vision.heads,
            'image_size': vision.image_size,
            'patch_size': vision.patch_size,
            'projection_dim': config.backbone.width,
            'vision_use_head': False,
        },
        image_token_id=config.vocab_size + 1,
        projection_dim=config.backbone.width,
        hidden_size=config.backbone.width,
    )


def with_spare_rows(weights: dict[str, Tensor], name: str, rows: int) -> dict[str, Tensor]:
    """Their embedding has rows that ours does not (the image token among them); nobody looks at them."""
    table = weights[name]
    return {**weights, name: torch.cat([table, torch.zeros(rows - len(table), table.shape[1])])}


@pytest.fixture
def paligemma(small_config: Callable, build_ours: Callable, part_name: PartName) -> tuple[KiVla, torch.nn.Module]:
    """Ours and theirs, with the same weights."""
    config = small_config(head='none', views=1)
    ours = build_ours(config)
    theirs = transformers.PaliGemmaForConditionalGeneration(paligemma_config(config)).eval()
    weights = {f'model.{name}': value for name, value in vision_language(ours.state_dict(), part_name).items()}
    weights = with_spare_rows(weights, 'model.language_model.embed_tokens.weight', config.vocab_size + 8)
    load(theirs, weights, tied={'lm_head.weight'})
    theirs.tie_weights()
    return ours, theirs


def test_vision_tower_and_projector_give_the_features_of_transformers(paligemma: tuple) -> None:
    ours, theirs = paligemma
    images = torch.rand(3, 3, 28, 28) * 2 - 1
    with torch.no_grad():
        mine = ours.encode(images[:, None])
        features = theirs.model.get_image_features(images)
    features = getattr(features, 'pooler_output', features)
    # Releases before 5.4 divide image features by the square root of the width and scale them back in the decoder.
    scale = 8.0 if (mine - features).abs().max() > (mine - 8.0 * features).abs().max() else 1.0
    assert (mine - scale * features).abs().max() < TOLERANCE
    assert mine.std() > 0.1


@pytest.mark.parametrize('padding', [0, 3])
def test_prefix_and_answer_logits_are_those_of_transformers_paligemma(paligemma: tuple, padding: int) -> None:
    """Image, a prompt that is read both ways, an answer that is read causally: the logits that predict every token."""
    ours, theirs = paligemma
    N, L, T, B = ours.config.vision.tokens, 5, 4, 2
    torch.manual_seed(2)
    images = torch.rand(B, 3, 28, 28) * 2 - 1
    prompt, answer = torch.randint(3, 300, (B, L)), torch.randint(3, 300, (B, T))
    with torch.no_grad():
        # Ours pads prompts on the right, in the middle of the sequence.
        padded = torch.cat([prompt, torch.zeros(B, padding, dtype=torch.int64)], dim=1)
        prompt_mask = torch.arange(L + padding)[None].expand(B, -1) < L
        prefix = ours.prefill(
            images[:, None], torch.ones(B, 1, dtype=torch.bool), padded, prompt_mask, torch.zeros(B, 7), hidden=True
        )
        hidden = ours.token_hidden(prefix, answer, torch.ones(B, T, dtype=torch.bool))
        mine = ours.logits(hidden)
        ids = torch.cat([torch.full((B, N), 301), prompt, answer], dim=1)
        found = theirs(
            input_ids=ids,
            pixel_values=images,
            attention_mask=torch.ones_like(ids),
            token_type_ids=(torch.arange(N + L + T)[None].expand(B, -1) >= N + L).long(),
            # Without labels some releases mask the answer as a part of the prompt.
            labels=ids,
        )
    reference = found.logits[:, N + L - 1 : N + L - 1 + T, :300]
    assert reference.std() > 0.1
    assert (mine - reference).abs().max() < TOLERANCE


def pi0_pair(config: ModelConfig, ours: KiVla, part_name: PartName) -> torch.nn.Module:
    """Their PI0 with our weights."""
    their_config = transformers.PI0Config(
        vlm_config=paligemma_config(config).to_dict(),
        dit_config=gemma_fields(config.expert, config.vocab_size),
        chunk_size=config.horizon,
        max_state_dim=config.state_dim,
        max_action_dim=config.action_dim,
    )
    theirs = transformers.PI0ForConditionalGeneration(their_config).eval()
    state = ours.state_dict()
    weights = {f'model.vlm.{name}': value for name, value in vision_language(state, part_name).items()}
    weights = with_spare_rows(weights, 'model.vlm.language_model.embed_tokens.weight', config.vocab_size + 8)
    inputs = {
        'action_in': 'embed_action_time.action_in_proj',
        'state_in': 'embed_action_time.state_proj',
        'time_in': 'embed_action_time.action_time_mlp_in',
        'time_out': 'embed_action_time.action_time_mlp_out',
        'action_out': 'action_out_proj',
        'norm': 'model.dit.norm',
    }
    for name, value in state.items():
        words = name.split('.')
        if words[0] == 'expert' and words[1] == 'layers':
            weights['.'.join(['model.dit.layers', words[2], part_name('expert', words[3]), *words[4:]])] = value
        elif words[0] == 'expert':
            weights['.'.join([inputs[words[1]], *words[2:]])] = value
    load(theirs, weights, tied={'model.dit.embed_tokens.weight'})
    return theirs


@pytest.fixture
def pi0(small_config: Callable, build_ours: Callable, part_name: PartName) -> tuple[KiVla, torch.nn.Module]:
    """Ours in pi0's structure, and theirs, with the same weights."""
    if not hasattr(transformers, 'PI0ForConditionalGeneration'):
        pytest.skip(f'transformers {transformers.__version__} has no PI0: the field was not compared')
    config = small_config(state_repr='suffix', adaptive=False)
    ours = build_ours(config)
    return ours, pi0_pair(config, ours, part_name)


def pi0_inputs(ours: KiVla, missing: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The same observation for both; theirs is one token sequence, image tokens in front and padding at its end."""
    B, L, N = 2, 5, ours.config.vision.tokens
    torch.manual_seed(3)
    images = torch.rand(B, 2, 3, 28, 28) * 2 - 1
    image_mask = torch.tensor([[True, not missing]] * B)
    prompt = torch.randint(3, 300, (B, L))
    prompt_mask = torch.tensor([[True] * L, [True] * (L - 2) + [False] * 2])
    state = torch.randn(B, 7)
    views = 1 if missing else 2
    ids = torch.cat([torch.full((B, views * N), 301), prompt], dim=1)
    mine = {
        'images_BVCHW': images,
        'image_mask_BV': image_mask,
        'prompt_BL': prompt,
        'prompt_mask_BL': prompt_mask,
        'state_BS': state,
    }
    theirs = {
        'state': state,
        'input_ids': ids,
        'pixel_values': images,
        'pixel_attention_mask': image_mask,
        'attention_mask': torch.cat([torch.ones(B, views * N, dtype=torch.int64), prompt_mask.long()], dim=1),
    }
    return mine, theirs


def exact_time(theirs: torch.nn.Module) -> None:
    """Give their time features frequencies in float64.

    In float32 they turn the fastest phase, of 250 turns, by up to 1e-3 rad; ours are computed without that error.
    """
    fraction = torch.linspace(0.0, 1.0, theirs.config.dit_config.hidden_size // 2, dtype=torch.float64)
    theirs.embed_action_time.sinusoid_embeds.sinusoid_freq = 2 * torch.pi / (4e-3 * 1000.0**fraction)


@pytest.mark.parametrize('missing', [False, True], ids=['two views', 'a missing view'])
@pytest.mark.parametrize('tau', [0.0, 0.3, 0.97])
def test_vector_field_is_that_of_transformers_pi0(pi0: tuple, missing: bool, tau: float) -> None:
    ours, theirs = pi0
    exact_time(theirs)
    assert field_difference(ours, theirs, missing, tau) < TOLERANCE / 10


@pytest.mark.parametrize(('tau', 'tolerance'), [(0.0, 5e-4), (0.3, TOLERANCE), (0.97, TOLERANCE)])
def test_the_same_with_their_rounded_time(pi0: tuple, tau: float, tolerance: float) -> None:
    """As it is installed: their phase error is largest at tau = 0."""
    assert field_difference(*pi0, missing=False, tau=tau) < tolerance


def field_difference(ours: KiVla, theirs: torch.nn.Module, missing: bool, tau: float) -> float:
    """Largest difference between the two fields at one time."""
    mine, other = pi0_inputs(ours, missing)
    noisy = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        field = ours.field(ours.prefill(**mine), noisy, torch.full((2,), tau))
        reference = theirs(**other, noise=noisy, timestep=1.0 - torch.full((2,), tau)).logits
    assert reference.std() > 0.1
    return float((field - reference).abs().max())


def test_ten_euler_steps_end_where_those_of_transformers_pi0_do(pi0: tuple) -> None:
    ours, theirs = pi0
    exact_time(theirs)
    mine, other = pi0_inputs(ours, missing=False)
    noise = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        actions = ours.denoise(ours.prefill(**mine), noise, steps=10)
        reference = theirs.sample_actions(**other, noise=noise.clone(), num_steps=10)
    assert (actions - reference).abs().max() < TOLERANCE
