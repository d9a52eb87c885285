"""Every recipe goes all the way: trained, bundled, exported, opened by the policy node, asked for a chunk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ki_policy_node.cycle.continuation import Timing
from ki_policy_node.policy.backends import Wanted, open_policy
from ki_robot.contract.contract import load_contract
from ki_robot.observation.observation import Observation
from ki_vla.errors import VlaError
from ki_vla.export.source import of_noise
from ki_vla.export.write import export_onnx, kinds_of
from ki_vla.objective.recipes import RECIPES, recipe
from ki_vla.policy.bundle import Bundle, load_bundle, write_bundle
from ki_vla.policy.generation import generate
from ki_vla.policy.inference import load_policy
from ki_vla.policy.serving import Serving
from ki_vla.policy.untrained import tiny_for, untrained_processor
from tools.docs.recipes import PAGE, page
from training.train.run import train

MakeRun = Callable[..., Any]
STEPS = 2
STAMP = 1_000_000_000


def look(bundle: Bundle) -> Observation:
    """A moment of the bundle's robot."""
    rng = np.random.default_rng(3)
    names = bundle.contract.camera_names
    images = {name: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8) for name in names}
    state = bundle.processor.state_stats.mean
    return Observation(STAMP, images, dict.fromkeys(names, STAMP), state, STAMP, 'lift the red cup')


def chunk_of(bundle: Bundle, backend: str, allow_untrained: bool = False) -> np.ndarray:
    """What the policy node would send for it."""
    wanted = Wanted(
        backend, str(bundle.folder), strict=True, threads=1, denoise_steps=0, allow_untrained=allow_untrained
    )
    policy = open_policy(wanted, bundle.contract, Timing('auto', 0))
    try:
        return policy.infer(look(bundle), None, 0, 0).data_HN
    finally:
        policy.close()


def as_the_model_is_defined(bundle: Bundle) -> np.ndarray:
    """The same by `KiVla` itself, neither packed nor exported."""
    model, processor, seen = bundle.model(), bundle.processor, look(bundle)
    shown = processor.observe(seen)
    images = torch.from_numpy(shown.sample()['images_VCHW'])[None]
    rest = [torch.from_numpy(getattr(shown, n))[None] for n in ('image_mask_V', 'prompt_L', 'prompt_mask_L', 'state_S')]
    says = bundle.serving.decode == 'tokens'
    prefix = model.prefill(images, *rest, hidden=says)
    if says:
        tokens = processor.action_tokens
        assert tokens is not None
        stream, bar = tokens.stream(), tokens.vocabulary.bar

        def allowed(ids_1T: torch.Tensor) -> torch.Tensor:
            if ids_1T.shape[1]:
                stream.push(int(ids_1T[0, -1]))
            found = torch.zeros(1, bundle.config.vocab_size, dtype=torch.bool)
            found[0, stream.allowed(bundle.config.max_targets - ids_1T.shape[1])] = True
            return found

        said = generate(model, prefix, bundle.config.max_targets + 1, [bar], allowed)
        return processor.decoded(said.ids[0].tolist(), seen.state)
    shape = (bundle.config.horizon, bundle.config.action_dim)
    noise = torch.from_numpy(np.random.default_rng(STAMP).standard_normal(shape, np.float32))[None]
    if bundle.config.head == 'parallel':
        return processor.actions(model.parallel_actions(prefix)[0].detach().numpy(), seen.state)
    return processor.actions(model.denoise(prefix, noise, bundle.serving.denoise_steps)[0].numpy(), seen.state)


def noise_bundle(name: str, folder: Path) -> Bundle:
    """A policy of noise of the structure and decoding of a recipe, every path of it open."""
    contract = load_contract('arm_single').replace(horizon=6)
    config = recipe(name).configure(tiny_for(contract)).replace(max_targets=200)
    serving = Serving.for_horizon(6, decode='tokens' if recipe(name).loss == 'none' else 'actions')
    state = of_noise(config).state(torch.float32)
    return write_bundle(
        folder, name=name, weights=state, processor=untrained_processor(contract, config),
        serving=serving.replace(denoise_steps=STEPS),
    )  # fmt: skip


@pytest.mark.parametrize('name', RECIPES)
def test_the_node_sends_the_chunk_that_the_model_defines(name: str, tmp_path: Path) -> None:
    bundle = noise_bundle(name, tmp_path / 'bundle')
    found = chunk_of(bundle, 'torch')
    assert found.shape == (6, len(bundle.contract.actions))
    np.testing.assert_allclose(found, as_the_model_is_defined(bundle), atol=2e-4)


def test_an_expert_policy_says_its_tokens_when_asked_to_and_they_have_a_scale_of_their_own(tmp_path: Path) -> None:
    plain = noise_bundle('ours', tmp_path / 'plain')
    moments = np.ones((6, len(plain.contract.actions)))
    stats = replace(plain.processor.action_stats, step_mean_HN=moments, step_std_HN=moments)
    processing = plain.processor.processing.replace(flow_scale='step')
    processor = replace(plain.processor, action_stats=stats, processing=processing)
    serving = plain.serving.replace(decode='tokens')
    stepped = write_bundle(
        tmp_path / 'stepped', name='stepped', weights=plain.model(), processor=processor, serving=serving
    )
    found = chunk_of(stepped, 'torch')
    np.testing.assert_allclose(found, as_the_model_is_defined(stepped), atol=1e-6)
    with load_policy(plain.folder, 'torch', decode='tokens') as policy:
        np.testing.assert_allclose(policy.infer(look(plain)).data_HN, found, atol=1e-6)
    with pytest.raises(VlaError, match=r'decode is actions, and .* has no action head'):
        load_policy(noise_bundle('pi0_fast', tmp_path / 'fast').folder, 'torch', strict=True, decode='actions')


# One recipe of each form of graphs; the others differ in how they train, and are exported by the same code.
FORMS = ('ours', 'pi0', 'pi0_fast', 'oft', 'transfusion', 'ours_continuous_state', 'ours_special_state')


@pytest.mark.parametrize(
    'name', [pytest.param(name, marks=pytest.mark.slow if name in FORMS else pytest.mark.nightly) for name in RECIPES]
)
def test_from_training_to_the_chunk_of_its_graphs(name: str, run_of: MakeRun) -> None:
    run = run_of({'recipe': name, 'steps': 1, 'vlm': 0.5, 'draws': 1}, save_every=10, validate_every=10)
    bundle = load_bundle(train(run))
    bundle.check_trained()
    export_onnx(bundle, steps=STEPS)
    assert kinds_of(bundle), 'it has graphs'
    wanted = chunk_of(bundle, 'onnx')
    assert wanted.shape == (bundle.config.horizon, len(bundle.contract.actions))
    assert np.isfinite(wanted).all()
    if bundle.serving.decode == 'tokens' or bundle.config.head == 'parallel':
        np.testing.assert_allclose(wanted, chunk_of(bundle, 'torch'), atol=1e-4)


def test_the_page_tells_how_each_is_run() -> None:
    text = PAGE.read_text(encoding='utf-8')
    assert text == page(text), 'write it with: python tools/docs/recipes.py'
