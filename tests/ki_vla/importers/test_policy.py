"""A checkpoint becomes a bundle and goes back; openpi's statistics are read and written."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.importers.norm_stats import read_norm_stats, write_norm_stats
from ki_vla.importers.policy import export_policy, import_policy
from ki_vla.policy.bundle import load_bundle
from ki_vla.policy.untrained import tiny_for, untrained_processor
from ki_vla.tokens.fast import fit

CONTRACT = load_contract('arm_single').replace(horizon=12)


@pytest.fixture(scope='module')
def processor():
    return untrained_processor(CONTRACT)


@pytest.fixture
def norm_stats(tmp_path):
    """As openpi writes it, padded to 32 columns."""
    rng = np.random.default_rng(0)
    parts = {}
    for part in ('state', 'actions'):
        low = rng.uniform(-2, -1, 32)
        parts[part] = {'mean': (low + 1).tolist(), 'std': [0.5] * 32, 'q01': low.tolist(), 'q99': (low + 2).tolist()}
    (tmp_path / 'norm_stats.json').write_text(json.dumps({'norm_stats': parts}))
    return tmp_path / 'norm_stats.json'


@pytest.mark.filterwarnings('ignore:.*the first 8 are taken')
@pytest.mark.parametrize(('kind', 'name'), [('openpi', 'pi05'), ('openpi', 'pi0'), ('lerobot', 'pi05')])
def test_checkpoint_to_bundle_to_checkpoint(tables, write, tmp_path, processor, norm_stats, kind, name):
    changes = {} if name == 'pi05' else {'adaptive': False, 'state_repr': 'suffix'}
    config = tiny_for(CONTRACT).replace(name=name, action_dim=10, state_dim=10, **changes)
    root = 'model.' if kind == 'lerobot' else ''
    theirs = write(tables[0](config, name == 'pi05', root), tmp_path / 'in' / 'model.safetensors')
    rng = np.random.default_rng(1)
    fit(list(np.cumsum(rng.normal(0, 0.1, (20, 12, 8)), axis=1)), size=256).save_public(tmp_path / 'fast')
    bundle, report = import_policy(
        kind, tmp_path / 'in', tmp_path / 'bundle', name='theirs', contract=CONTRACT, stats=norm_stats,
        tokenizer=processor.tokenizer, fast=tmp_path / 'fast', config=config,
    )  # fmt: skip
    assert not report.fresh
    again = load_bundle(tmp_path / 'bundle')
    assert again.policy_id == bundle.policy_id
    assert again.processor.processing.normalisation == ('quantile' if name == 'pi05' else 'zscore')
    assert again.processor.codec.horizon == 12
    # The policy runs: an image, an instruction and a state in, a chunk of SI values out.
    images = {camera: np.zeros((30, 40, 3), np.uint8) for camera in CONTRACT.camera_names}
    state = again.processor.state_stats.mean
    shown = again.processor.inputs(images, state, 'pick up the block')
    model = again.model()
    prefix = model.prefill(
        torch.from_numpy(shown.sample()['images_VCHW'])[None], torch.from_numpy(shown.image_mask_V)[None],
        torch.from_numpy(shown.prompt_L)[None], torch.from_numpy(shown.prompt_mask_L)[None],
        torch.from_numpy(shown.state_S)[None],
    )  # fmt: skip
    chunk = model.denoise(prefix, torch.zeros(1, 12, 10), steps=2)
    assert again.processor.actions(chunk[0].detach().numpy(), state).shape == (12, 8)
    export_policy(again, tmp_path / 'out', kind, any_vocabulary=True)
    back = load_file(tmp_path / 'out' / 'model.safetensors')
    assert all(torch.equal(back[key], theirs[key]) for key in report.used)
    assert set(back) == set(theirs)
    assets = tmp_path / 'out' / ('assets/arm_single' if kind == 'openpi' else '.')
    first, second = read_norm_stats(assets, CONTRACT), read_norm_stats(norm_stats, CONTRACT)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.q99, other.q99)


def test_paligemma_bundle_says_that_its_expert_is_new(tables, write, tmp_path, processor):
    config = processor.config
    write(tables[1](config, 'old', rows=config.vocab_size + 64), tmp_path / 'in.safetensors')
    bundle, report = import_policy(
        'paligemma', tmp_path / 'in.safetensors', tmp_path / 'bundle', name='start', contract=CONTRACT,
        stats=(processor.state_stats, processor.action_stats), tokenizer=processor.tokenizer, config=config,
    )  # fmt: skip
    assert report.fresh
    assert 'freshly initialised' in load_bundle(bundle.folder).provenance['note']
    with pytest.raises(VlaError, match=r'reached its action head .* lists backbone, embed, projector, vision'):
        bundle.check_trained()


def test_a_checkpoint_that_does_not_fit_leaves_no_bundle(tables, write, tmp_path, processor):
    table = tables[0](processor.config, True)
    table.pop('time_mlp_in.bias')
    write(table, tmp_path / 'in.safetensors')
    with pytest.raises(VlaError, match=r'missing: time_mlp_in\.bias'):
        import_policy(
            'openpi', tmp_path / 'in.safetensors', tmp_path / 'bundle', name='x', contract=CONTRACT,
            stats=(processor.state_stats, processor.action_stats), tokenizer=processor.tokenizer,
            config=processor.config,
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.safetensors']


def test_full_size_configuration_follows_the_checkpoint_and_the_robot(tables, as_checkpoint, monkeypatch):
    from ki_vla.importers import policy
    from ki_vla.model.config import preset

    checkpoint = as_checkpoint(tables[0](preset('full'), True))
    monkeypatch.setattr(policy, 'open_checkpoint', lambda source: checkpoint)
    config = policy._config('openpi', 'x', load_contract('bimanual_static'))
    assert (config.name, config.horizon, config.views, config.action_dim) == ('pi05', 50, 4, 32)


@pytest.fixture
def checkpoint(tables, write, tmp_path, processor):
    """A fine-tuned pi0.5 of the robot's size; what its config.json says is the test's. Returns how to import it."""
    config = tiny_for(CONTRACT).replace(name='pi05', action_dim=10, state_dim=10)
    write(tables[0](config, True), tmp_path / 'in' / 'model.safetensors')

    def bring_in(said=None, source='in', kind='openpi'):
        if said is not None:
            (tmp_path / 'in' / 'config.json').write_text(json.dumps(said))
        return import_policy(
            kind, tmp_path / source, tmp_path / 'bundle', name='theirs', contract=CONTRACT,
            stats=(processor.state_stats, processor.action_stats), tokenizer=processor.tokenizer, config=config,
        )  # fmt: skip

    return bring_in


@pytest.mark.parametrize('source', ['in', 'in/model.safetensors'])
@pytest.mark.parametrize('field', ['action_horizon', 'chunk_size'])
def test_a_checkpoint_of_another_horizon_is_refused_by_name(checkpoint, tmp_path, field, source):
    said = rf'config.json: {field} is 30, and horizon is 12 in the contract of arm_single; .* horizon to 30, or take a'
    with pytest.raises(VlaError, match=said):
        checkpoint({field: 30}, source)
    assert not (tmp_path / 'bundle').exists()


def test_the_horizon_is_said_with_where_it_is_known_from(checkpoint):
    bundle, _ = checkpoint({'type': 'pi05', 'chunk_size': 12})
    assert bundle.provenance['horizon'] == '12 steps (chunk_size)'
    bundle.check_trained()
    assert bundle.provenance['state'] == 'assumed to be read as text in the prompt'


def test_a_horizon_that_nobody_wrote_down_is_said_to_be_assumed(checkpoint):
    bundle, _ = checkpoint()
    assert bundle.provenance['horizon'] == (
        "12 steps (assumed from the robot's contract; no config.json with chunk_size or action_horizon)"
    )


@pytest.mark.parametrize(
    ('said', 'message'),
    [
        ({'chunk_size': '12'}, "chunk_size is '12', no number of steps"),
        ({'action_horizon': 0}, 'action_horizon is 0, no number of steps'),
        ([12], 'no table of names and values'),
        ({'type': 'pi0', 'chunk_size': 12}, "says the policy is 'pi0', but the tensors are those of 'pi05'"),
    ],
)
def test_a_description_that_cannot_be_meant_is_refused(checkpoint, said, message):
    with pytest.raises(VlaError, match=message):
        checkpoint(said)


def test_a_policy_that_was_trained_without_the_state_in_its_prompt_is_warned_about(checkpoint):
    with pytest.warns(UserWarning, match='discrete_state_input is false'):
        bundle, _ = checkpoint({'action_horizon': 12, 'discrete_state_input': False})
    assert bundle.provenance['state'] == 'trained without it; here it stands in the prompt'


def test_a_policy_with_words_of_its_own_is_not_exported_by_accident(tmp_path, processor):
    from ki_vla.policy.untrained import write_untrained

    bundle = write_untrained(tmp_path / 'b', CONTRACT)
    with pytest.raises(VlaError, match='tokenizer of its own'):
        export_policy(bundle, tmp_path / 'out', 'openpi')
    with pytest.raises(VlaError, match='no layout'):
        export_policy(bundle, tmp_path / 'out', 'jax')
    with pytest.raises(VlaError, match='no kind'):
        import_policy('jax', 'x', 'y', name='n', contract=CONTRACT, stats='s', tokenizer='t')


def test_statistics_wider_than_the_robot_are_cut_with_a_warning(norm_stats):
    with pytest.warns(UserWarning, match='32 columns; the first 8 are taken'):
        state, actions = read_norm_stats(norm_stats, CONTRACT)
    assert state.names == CONTRACT.state_names
    assert actions.names == CONTRACT.action_names
    assert len(actions.q01) == 8


def test_statistics_are_written_and_read_back(processor, tmp_path):
    write_norm_stats(tmp_path / 'a' / 'norm_stats.json', processor.state_stats, processor.action_stats)
    state, actions = read_norm_stats(tmp_path / 'a', CONTRACT)
    for one, other in ((state, processor.state_stats), (actions, processor.action_stats)):
        for moment in ('mean', 'std', 'q01', 'q99'):
            np.testing.assert_array_equal(getattr(one, moment), getattr(other, moment))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda d: d.pop('norm_stats'), 'no table norm_stats'),
        (lambda d: d['norm_stats'].pop('actions'), "no part 'actions'"),
        (lambda d: d['norm_stats']['state'].update(q01=None), r'state\.q01 is missing'),
        (lambda d: d['norm_stats']['state'].update(q01=[0.0] * 3), 'differing number'),
        (lambda d: d['norm_stats']['state'].update(q01=['a'] * 32), 'no number'),
        (lambda d: d['norm_stats']['state'].update(q01=[[0.0] * 32]), 'a list is needed'),
        (lambda d: d['norm_stats']['state'].update({k: [0.0] * 3 for k in ('mean', 'std', 'q01', 'q99')}), '3 columns'),
        (lambda d: d['norm_stats']['actions'].update(std=[-1.0] * 32), 'negative'),
    ],
)
@pytest.mark.filterwarnings('ignore:.*the first 8 are taken')
def test_damaged_statistics_are_refused_by_field(norm_stats, change, message):
    data = json.loads(norm_stats.read_text())
    change(data)
    norm_stats.write_text(json.dumps(data))
    with pytest.raises(VlaError, match=message):
        read_norm_stats(norm_stats, CONTRACT)


def test_an_unreadable_file_is_refused(tmp_path):
    with pytest.raises(VlaError, match='cannot be read'):
        read_norm_stats(tmp_path, CONTRACT)


@pytest.mark.filterwarnings('ignore:.*the first 8 are taken')
def test_absent_quantiles_are_estimated_only_where_they_are_not_needed(norm_stats):
    data = json.loads(norm_stats.read_text())
    for part in data['norm_stats'].values():
        part.update(q01=None, q99=None)
    norm_stats.write_text(json.dumps(data))
    with pytest.raises(VlaError, match='q01 is missing'):
        read_norm_stats(norm_stats, CONTRACT)
    state, _ = read_norm_stats(norm_stats, CONTRACT, quantiles=False)
    np.testing.assert_allclose(state.q99 - state.q01, 2 * 2.326 * state.std, rtol=1e-3)
    assert 'normal distribution' in state.provenance['quantiles']
