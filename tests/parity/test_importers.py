"""SI in, SI out: an imported policy's numbers against the transforms of openpi and lerobot, written down as formulas.

Between normalisation and its inverse stands the model, whose parity the other files of this folder hold.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_robot.transforms import Stats
from ki_vla.importers.checkpoint_metadata import PUBLIC_POLICIES
from ki_vla.importers.norm_stats import read_statistics
from ki_vla.importers.questions import OPENPI_VIEWS, check_cameras, check_relative
from ki_vla.policy.model_inputs import Processing
from ki_vla.policy.processor import Processor
from ki_vla.policy.untrained import untrained_processor

CONTRACT = load_contract('arm_single').replace(horizon=12)
TOLERANCE = 1e-4
MASK = np.array([column.representation == 'delta' for column in CONTRACT.actions])


def statistics(path: Path, rng: np.random.Generator) -> dict[str, dict[str, np.ndarray]]:
    """openpi's file, padded to 32 columns; two columns hardly move, as grippers that were always open."""
    parts = {}
    for part in ('state', 'actions'):
        low, span = rng.uniform(-2, 0, 8), rng.uniform(0.5, 2, 8)
        span[3], span[7] = 2e-3, 0.0
        parts[part] = {'mean': low + span / 2, 'std': span / 3, 'q01': low, 'q99': low + span}
    padded = {p: {n: np.pad(v, (0, 24)).tolist() for n, v in each.items()} for p, each in parts.items()}
    path.write_text(json.dumps({'norm_stats': padded}))
    return parts


@pytest.mark.parametrize('variant', ['pi0', 'pi05', 'pi05 without state'])
def test_states_prompts_and_actions_are_openpis(tmp_path: Path, variant: str) -> None:
    rng = np.random.default_rng(3)
    parts = statistics(tmp_path / 'norm_stats.json', rng)
    quantiles = variant != 'pi0'
    state_stats, action_stats, rules = read_statistics(tmp_path / 'norm_stats.json', CONTRACT, quantiles=quantiles)
    base = untrained_processor(CONTRACT)
    shown = {'pi0': 'suffix', 'pi05': 'text', 'pi05 without state': 'none'}[variant]
    config = base.config.replace(state_repr=shown, adaptive=quantiles, max_prompt=400)
    way = Processing(normalisation='quantile' if quantiles else 'zscore', rules=rules, state_text_lowest=-1)
    processor = Processor(CONTRACT, state_stats, action_stats, base.tokenizer, None, config, way)

    def normalised(x: np.ndarray, part: str) -> np.ndarray:
        s = parts[part]
        if quantiles:
            return (x - s['q01']) / (s['q99'] - s['q01'] + 1e-6) * 2.0 - 1.0
        return (x - s['mean']) / (s['std'] + 1e-6)

    def restored(x: np.ndarray, part: str) -> np.ndarray:
        s = parts[part]
        if quantiles:
            return (x + 1.0) / 2.0 * (s['q99'] - s['q01'] + 1e-6) + s['q01']
        return x * (s['std'] + 1e-6) + s['mean']

    for state in rng.uniform(-2.5, 2.5, (20, 8)):
        theirs = normalised(state, 'state')
        np.testing.assert_allclose(processor.normalised_state(state), theirs, rtol=1e-6, atol=TOLERANCE)
        bins = np.digitize(theirs, bins=np.linspace(-1, 1, 257)[:-1]) - 1
        text = 'put it_away\n'.strip().replace('_', ' ')
        prompt = f'Task: {text}, State: {" ".join(map(str, bins))};\nAction: ' if shown == 'text' else f'{text}\n'
        found = processor.tokenizer.decode(processor.prompt('put it_away\n', processor.normalised_state(state)))
        assert found == prompt
        model = rng.normal(0, 1, (12, config.action_dim)).astype(np.float32)
        answer = restored(model[:, :8].astype(np.float64), 'actions') + np.where(MASK, state, 0.0)
        np.testing.assert_allclose(processor.actions(model, state), answer, atol=TOLERANCE)


@pytest.mark.parametrize('padded', [0, 32])
def test_states_and_prompts_are_lerobots(padded: int) -> None:
    """0.4.4 fills the normalised state up with zeros before it writes it down; 0.5 and later do not."""
    rng = np.random.default_rng(4)
    low, span = rng.uniform(-2, 0, 8), rng.uniform(0.5, 2, 8)
    span[2] = 0.0
    names = (CONTRACT.state_names, CONTRACT.action_names)
    state_stats, action_stats = (Stats(n, low + span / 2, span / 3, low, low + span, 9) for n in names)
    base = untrained_processor(CONTRACT)
    way = Processing(rules='lerobot', state_text_columns=padded, state_text_lowest=-1)
    config = base.config.replace(max_prompt=400)
    processor = Processor(CONTRACT, state_stats, action_stats, base.tokenizer, None, config, way)
    for state in rng.uniform(-2.5, 2.5, (20, 8)):
        theirs = 2.0 * (state - low) / np.where(span == 0, 1e-8, span) - 1.0
        if padded:
            theirs = np.pad(theirs, (0, padded - 8))
        bins = np.digitize(theirs, bins=np.linspace(-1, 1, 257)[:-1]) - 1
        found = processor.tokenizer.decode(processor.prompt('go', processor.normalised_state(state)))
        assert found == f'Task: go, State: {" ".join(map(str, bins))};\nAction: '


@pytest.mark.parametrize(
    ('robot', 'names'),
    [
        ('aloha', ('pi0_aloha_towel', 'pi0_aloha_tupperware', 'pi0_aloha_pen_uncap')),
        ('droid', ('pi0_droid', 'pi05_droid')),
        ('libero', ('pi05_libero',)),
    ],
)
def test_ready_contracts_have_the_columns_and_views_of_the_public_checkpoints(
    robot: str, names: tuple[str, ...]
) -> None:
    contract = load_contract(robot)
    for name in names:
        check_relative(PUBLIC_POLICIES[name].relative, contract, name)
    assert check_cameras(tuple(OPENPI_VIEWS), {}, contract, names[0]).startswith('base_0_rgb <- ')
