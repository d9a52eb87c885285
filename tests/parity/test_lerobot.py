"""A third opinion: the expert with adaptive norms against lerobot's pi0.5, with the same weights, in float32.

Needs an importable `lerobot` (0.6.x, with transformers 5.5.x), which this project does not install; without it the test
is skipped and says so. Run it with `pytest -m slow tests/parity/test_lerobot.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from ki_vla.model.config import GemmaConfig
from ki_vla.model.kivla import KiVla

pytestmark = pytest.mark.slow
modeling = pytest.importorskip(
    'lerobot.policies.pi05.modeling_pi05',
    reason='lerobot is not installed: pi0.5 was not compared',
    exc_type=ImportError,
)

TOLERANCE = 1e-4
PartName = Callable[[str, str], str]
ROOT, EXPERT = 'paligemma_with_expert.paligemma.model', 'paligemma_with_expert.gemma_expert.model'
TOWER = f'{ROOT}.vision_tower.vision_model'
PLACES = {
    'vision.patch': f'{TOWER}.embeddings.patch_embedding',
    'vision.position': f'{TOWER}.embeddings.position_embedding.weight',
    'vision.norm': f'{TOWER}.post_layernorm',
    'projector': f'{ROOT}.multi_modal_projector.linear',
    'embed': f'{ROOT}.language_model.embed_tokens',
    'backbone.norm': f'{ROOT}.language_model.norm',
    'expert.norm': f'{EXPERT}.norm',
    'expert.action_in': 'action_in_proj',
    'expert.action_out': 'action_out_proj',
    'expert.time_in': 'time_mlp_in',
    'expert.time_out': 'time_mlp_out',
}


def their_name(ours: str, part_name: PartName) -> str:
    """The name in lerobot's pi0.5 of one of our weights."""
    words = ours.split('.')
    if words[1] == 'layers':
        place = {'vision': f'{TOWER}.encoder', 'backbone': f'{ROOT}.language_model', 'expert': EXPERT}[words[0]]
        return '.'.join([place, 'layers', words[2], part_name(words[0], words[3]), *words[4:]])
    mine = next(m for m in PLACES if ours == m or ours.startswith(m + '.'))
    return PLACES[mine] + ours.removeprefix(mine)


@pytest.fixture
def pair(
    small_config: Callable, build_ours: Callable, part_name: PartName, monkeypatch: pytest.MonkeyPatch
) -> tuple[KiVla, torch.nn.Module]:
    """Ours and theirs; theirs fixes the vocabulary and the width of the vision MLP, so ours follows."""
    base = small_config()
    config = small_config(
        vision=base.vision.replace(mlp=4304),
        backbone=GemmaConfig(width=64, depth=3, mlp=96, heads=8, kv_heads=1, head_dim=16),
        expert=GemmaConfig(width=32, depth=3, mlp=48, heads=8, kv_heads=1, head_dim=16),
        vocab_size=257152,
    )
    ours = build_ours(config)

    def variant(name: str) -> object:
        g = config.backbone if name == 'backbone' else config.expert
        return modeling.GemmaConfig(g.width, g.depth, g.mlp, g.heads, g.kv_heads, g.head_dim)

    mapping = modeling.CONFIG_MAPPING

    def paligemma() -> object:
        small = {
            'model_type': 'siglip_vision_model',
            'hidden_size': config.vision.width,
            'num_hidden_layers': config.vision.depth,
            'num_attention_heads': config.vision.heads,
            'patch_size': config.vision.patch_size,
            'image_size': config.vision.image_size,
            'vision_use_head': False,
        }
        return mapping['paligemma'](vision_config=small)

    monkeypatch.setattr(modeling, 'get_gemma_config', variant)
    monkeypatch.setattr(modeling, 'CONFIG_MAPPING', {'paligemma': paligemma, 'gemma': mapping['gemma']})
    settings = SimpleNamespace(
        paligemma_variant='backbone',
        action_expert_variant='expert',
        image_resolution=(28, 28),
        dtype='float32',
        freeze_vision_encoder=False,
        train_expert_only=False,
        max_action_dim=config.action_dim,
        chunk_size=config.horizon,
        num_inference_steps=10,
        compile_model=False,
        min_period=4e-3,
        max_period=4.0,
        rtc_config=None,
    )
    theirs = modeling.PI05Pytorch(settings).eval()
    projector = theirs.paligemma_with_expert.paligemma.model.multi_modal_projector
    projector.linear = torch.nn.Linear(config.vision.width, config.backbone.width)
    weights = {their_name(name, part_name): value for name, value in ours.state_dict().items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert unexpected == []
    assert all('lm_head' in name for name in missing), missing
    return ours, theirs


def _inputs(ours: KiVla) -> tuple[dict, tuple]:
    torch.manual_seed(3)
    images, image_mask = torch.rand(2, 2, 3, 28, 28) * 2 - 1, torch.tensor([[True, True], [True, False]])
    prompt = torch.randint(3, 1000, (2, 5))
    prompt_mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    mine = {
        'images_BVCHW': images,
        'image_mask_BV': image_mask,
        'prompt_BL': prompt,
        'prompt_mask_BL': prompt_mask,
        'state_BS': torch.zeros(2, ours.config.state_dim),
    }
    return mine, (list(images.unbind(1)), list(image_mask.unbind(1)), prompt, prompt_mask)


@pytest.mark.parametrize('tau', [0.0, 0.3, 0.97])
def test_vector_field_is_that_of_lerobot_pi05(pair: tuple, tau: float) -> None:
    """Their training forward gives squared errors of the field, entry by entry."""
    ours, theirs = pair
    mine, other = _inputs(ours)
    noise, actions = torch.randn(2, 6, 5), torch.randn(2, 6, 5)
    with torch.no_grad():
        noisy = tau * actions + (1 - tau) * noise
        field = ours.field(ours.prefill(**mine), noisy, torch.full((2,), tau))
        reference = theirs(*other, actions, noise, 1.0 - torch.full((2,), tau))
    assert (noise - actions - field).std() > 0.1
    assert ((noise - actions - field).abs() - reference.sqrt()).abs().max() < TOLERANCE


@pytest.mark.parametrize('steps', [1, 10])
def test_euler_steps_end_where_those_of_lerobot_pi05_do(pair: tuple, steps: int) -> None:
    ours, theirs = pair
    mine, other = _inputs(ours)
    noise = torch.randn(2, 6, 5)
    with torch.no_grad():
        actions = ours.denoise(ours.prefill(**mine), noise, steps=steps)
        reference = theirs.sample_actions(*other, noise=noise.clone(), num_steps=steps)
    assert reference.std() > 0.1
    assert (actions - reference).abs().max() < TOLERANCE
