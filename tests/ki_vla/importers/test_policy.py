"""A checkpoint becomes a bundle and goes back; what it does not say is asked; statistics are read and written."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.importers.norm_stats import find_norm_stats, read_norm_stats, read_statistics, write_norm_stats
from ki_vla.importers.policy import export_policy, import_policy
from ki_vla.importers.questions import Answers
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
        low, used = rng.uniform(-2, -1, 32), np.arange(32) < 8
        moments = {'mean': low + 1, 'std': np.full(32, 0.5), 'q01': low, 'q99': low + 2}
        parts[part] = {name: np.where(used, values, 0.0).tolist() for name, values in moments.items()}
    (tmp_path / 'norm_stats.json').write_text(json.dumps({'norm_stats': parts}))
    return tmp_path / 'norm_stats.json'


ANSWERS = Answers(horizon=12, state_in_prompt=True, cameras={'base_0_rgb': 'scene', 'left_wrist_0_rgb': 'wrist'})


@pytest.mark.parametrize(('kind', 'name'), [('openpi', 'pi05'), ('openpi', 'pi0'), ('lerobot', 'pi05')])
def test_checkpoint_to_bundle_to_checkpoint(tables, write, tmp_path, processor, norm_stats, kind, name):
    changes = {} if name == 'pi05' else {'adaptive': False, 'state_repr': 'suffix'}
    config = tiny_for(CONTRACT).replace(name=name, action_dim=10, state_dim=10, **changes)
    root = 'model.' if kind == 'lerobot' else ''
    theirs = write(tables[0](config, name == 'pi05', root), tmp_path / 'in' / 'model.safetensors')
    if kind == 'lerobot':
        said = {'type': name, 'chunk_size': 12, 'use_relative_actions': False}
        (tmp_path / 'in' / 'config.json').write_text(json.dumps(said))
    rng = np.random.default_rng(1)
    fit(list(np.cumsum(rng.normal(0, 0.1, (20, 12, 8)), axis=1)), size=256).save_public(tmp_path / 'fast')
    made = import_policy(
        kind, tmp_path / 'in', tmp_path / 'bundle', name='theirs', contract=CONTRACT, stats=norm_stats,
        tokenizer=processor.tokenizer, fast=tmp_path / 'fast', config=config, answers=ANSWERS,
    )  # fmt: skip
    report = made.report
    assert not report.fresh
    again = load_bundle(tmp_path / 'bundle')
    assert again.policy_id == made.bundle.policy_id
    assert (again.processor.processing.rules, again.processor.processing.state_text_lowest) == ('openpi', -1)
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
    made = import_policy(
        'paligemma', tmp_path / 'in.safetensors', tmp_path / 'bundle', name='start', contract=CONTRACT,
        stats=(processor.state_stats, processor.action_stats), tokenizer=processor.tokenizer, config=config,
    )  # fmt: skip
    bundle = made.bundle
    assert made.report.fresh
    assert bundle.processor.processing.rules == 'ki'
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
            config=processor.config.replace(name='pi05'), answers=ANSWERS,
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ['in.safetensors']


def test_full_size_configuration_follows_the_checkpoint_and_the_robot(tables, as_checkpoint, monkeypatch, tmp_path):
    from ki_vla.importers import policy
    from ki_vla.importers.sources import CheckpointSource
    from ki_vla.model.config import preset

    checkpoint = as_checkpoint(tables[0](preset('full'), True))
    monkeypatch.setattr(policy, 'open_openpi', lambda source: checkpoint)
    robot = load_contract('arm_single')
    stats = untrained_processor(robot)
    found = policy._understand(
        'openpi', CheckpointSource(tmp_path, 'x'), robot, (stats.state_stats, stats.action_stats),
        Answers(horizon=robot.horizon, state_in_prompt=False), None,
    )  # fmt: skip
    config = found.config
    assert (config.name, config.horizon, config.views, config.action_dim) == ('pi05', robot.horizon, 3, 32)
    assert config.state_repr == 'none'


@pytest.fixture
def checkpoint(tables, write, tmp_path, processor):
    """A fine-tuned pi0.5 of the robot's size; what its config.json says is the test's. Returns how to import it."""
    config = tiny_for(CONTRACT).replace(name='pi05', action_dim=10, state_dim=10)
    write(tables[0](config, True), tmp_path / 'in' / 'model.safetensors')

    def bring_in(said=None, source='in', kind='openpi', contract=CONTRACT, **answers):
        if said is not None:
            (tmp_path / 'in' / 'config.json').write_text(json.dumps(said))
        return import_policy(
            kind, tmp_path / source, tmp_path / 'bundle', name='theirs', contract=contract,
            stats=(processor.state_stats, processor.action_stats), tokenizer=processor.tokenizer, config=config,
            answers=Answers(**{'state_in_prompt': True} | answers),
        )  # fmt: skip

    return bring_in


@pytest.mark.parametrize('source', ['in', 'in/model.safetensors'])
@pytest.mark.parametrize('field', ['action_horizon', 'chunk_size'])
def test_a_checkpoint_of_another_horizon_is_refused_by_name(checkpoint, tmp_path, field, source):
    said = rf'config.json: horizon is 30 \(config.json, {field}\), and 12 in the contract .* to 30 in the contract, or'
    with pytest.raises(VlaError, match=said):
        checkpoint({field: 30}, source)
    assert not (tmp_path / 'bundle').exists()


def test_how_a_checkpoint_was_understood_is_said_and_kept(checkpoint):
    made = checkpoint({'type': 'pi05', 'chunk_size': 12, 'discrete_state_input': True}, state_in_prompt=None)
    assert made.said['horizon'] == '12 steps (config.json, chunk_size)'
    assert made.said['state'] == 'as text in the prompt (config.json, discrete_state_input)'
    assert made.said['views'] == 'base_0_rgb <- scene, left_wrist_0_rgb <- wrist; absent: right_wrist_0_rgb'
    assert made.said['actions'].startswith(f'{CONTRACT.action_names[0]} delta, ')
    assert made.bundle.provenance['horizon'] == made.said['horizon']
    made.bundle.check_trained()


@pytest.mark.parametrize(
    ('answers', 'question'),
    [
        ({}, r'in: does not say how many steps the policy plans; write --horizon'),
        (
            {'horizon': 12, 'state_in_prompt': None},
            r'does not say whether the state stands in the prompt .* yes, or no',
        ),
        ({'public_name': 'pi07'}, r'--public-name pi07: not a public checkpoint .* one of pi0_base, pi05_base'),
        ({'horizon': 12, 'public_name': 'pi05_base'}, r"horizon: --horizon says 12, and openpi's .* pi05_base 50;"),
        ({'horizon': 12, 'cameras': {'top': 'scene'}}, r'--camera top=scene: the views of .*in are base_0_rgb, '),
        (
            {'horizon': 12, 'cameras': {'base_0_rgb': 'wrist', 'left_wrist_0_rgb': 'scene'}},
            'its views stand in the order',
        ),
    ],
)
def test_what_nobody_says_is_asked_and_nothing_is_written(checkpoint, tmp_path, answers, question):
    with pytest.raises(VlaError, match=question):
        checkpoint(**answers)
    assert not (tmp_path / 'bundle').exists()


def test_a_folder_that_bears_a_public_name_is_told_how_to_say_so(checkpoint, tmp_path):
    (tmp_path / 'in').rename(tmp_path / 'pi05_libero')
    with pytest.raises(VlaError, match=r'\(or --public-name pi05_libero, if this is that public checkpoint\)'):
        checkpoint(source='pi05_libero')


def test_a_public_checkpoints_configuration_answers_for_it(checkpoint):
    """pi05_libero plans 10 steps of absolute actions, and is not shown the state."""
    robot = CONTRACT.replace(horizon=10)
    with pytest.raises(VlaError, match=r'pi05_libero: the policy has 7 action columns, and .* arm_single 8'):
        checkpoint(public_name='pi05_libero', state_in_prompt=None, contract=robot)
    with pytest.raises(
        VlaError, match=r'pi0_droid: action column 1 is absolute, and joint1/position .* is delta; write'
    ):
        checkpoint(public_name='pi0_droid', contract=robot)


def test_cameras_of_the_wrong_kind_or_number_are_refused(checkpoint):
    first, second = CONTRACT.cameras
    with pytest.raises(VlaError, match=r'view base_0_rgb is a scene camera, and the camera wrist .* of kind wrist'):
        checkpoint(horizon=12, contract=CONTRACT.replace(cameras=(second, first)))
    more = tuple(first.replace(name=f'camera{n}', topic=f'camera{n}/image') for n in range(4))
    with pytest.raises(VlaError, match='has 4 cameras'):
        checkpoint(horizon=12, contract=CONTRACT.replace(cameras=more))


def test_a_policy_trained_without_the_state_is_not_shown_it(checkpoint):
    made = checkpoint({'action_horizon': 12, 'discrete_state_input': False}, state_in_prompt=None)
    assert made.bundle.config.state_repr == 'none'
    assert made.said['state'] == 'not shown (config.json, discrete_state_input)'
    with pytest.raises(VlaError, match=r'--state-in-prompt says yes, and config.json, discrete_state_input no'):
        checkpoint(state_in_prompt=True)


@pytest.mark.parametrize(
    ('said', 'message'),
    [
        ({'chunk_size': '12'}, "chunk_size is '12', no number of steps"),
        ({'action_horizon': 0}, 'action_horizon is 0, no number of steps'),
        ([12], 'no table of names and values'),
        ({'type': 'pi0', 'chunk_size': 12}, "says the policy is 'pi0', but the tensors are those of 'pi05'"),
        ({'type': 'smolvla', 'chunk_size': 50}, 'this is SmolVLA, whose backbone is SmolVLM2'),
        ({'type': 'pi0_fast'}, 'this is pi0-FAST, which has no action expert'),
        ({'type': 'act'}, "a policy of another family .'act'.; pi0 and pi05 can be imported"),
        ({'action_horizon': 12, 'discrete_state_input': 'no'}, "discrete_state_input is 'no'; write true or false"),
    ],
)
def test_a_description_that_cannot_be_meant_is_refused(checkpoint, said, message):
    with pytest.raises(VlaError, match=message):
        checkpoint(said)


def test_a_policy_with_words_of_its_own_is_not_exported_by_accident(tmp_path, processor):
    from ki_vla.policy.untrained import write_untrained

    bundle = write_untrained(tmp_path / 'b', CONTRACT)
    with pytest.raises(VlaError, match='tokenizer of its own'):
        export_policy(bundle, tmp_path / 'out', 'openpi')
    with pytest.raises(VlaError, match='no layout'):
        export_policy(bundle, tmp_path / 'out', 'jax')
    with pytest.raises(VlaError, match='no kind'):
        import_policy('jax', 'x', 'y', name='n', contract=CONTRACT, stats='s', tokenizer='t')


def test_padding_behind_the_columns_is_left_out_and_columns_that_move_are_not(norm_stats):
    state, actions = read_norm_stats(norm_stats, CONTRACT)
    assert (state.names, actions.names) == (CONTRACT.state_names, CONTRACT.action_names)
    data = json.loads(norm_stats.read_text())
    data['norm_stats']['state']['std'][13] = 0.2
    norm_stats.write_text(json.dumps(data))
    with pytest.raises(
        VlaError, match=r'norm_stats\.state has 14 columns that move, and the robot has 8 \(joint1/posit'
    ):
        read_norm_stats(norm_stats, CONTRACT)


def test_statistics_in_assets_are_found_and_one_of_several_is_asked_for(norm_stats, tmp_path):
    assert find_norm_stats(tmp_path) is None
    for name in ('trossen', 'physical-intelligence/libero'):
        (tmp_path / 'assets' / name).mkdir(parents=True)
        (tmp_path / 'assets' / name / 'norm_stats.json').write_text(norm_stats.read_text())
        if name == 'trossen':
            (tmp_path / 'params').mkdir()
            assert find_norm_stats(tmp_path / 'params') == tmp_path / 'assets' / 'trossen' / 'norm_stats.json'
    with pytest.raises(VlaError, match=r'statistics of physical-intelligence/libero, trossen; .* --asset NAME'):
        find_norm_stats(tmp_path)
    assert find_norm_stats(tmp_path, 'physical-intelligence/libero') is not None
    with pytest.raises(VlaError, match="has no statistics 'franka'; it has physical-intelligence/libero, trossen"):
        find_norm_stats(tmp_path, 'franka')


def test_the_statistics_of_ki_data_stats_are_taken_with_their_own_rules(processor, tmp_path):
    from ki_robot.transforms import save_stats

    save_stats(tmp_path / 'stats.json', {'state': processor.state_stats, 'actions': processor.action_stats})
    state, _, rules = read_statistics(tmp_path / 'stats.json', CONTRACT)
    np.testing.assert_array_equal(state.q01, processor.state_stats.q01)
    assert rules == 'ki'
    with pytest.raises(VlaError, match='which is none of the state columns: they are of another robot'):
        read_statistics(tmp_path / 'stats.json', load_contract('bimanual_static'))


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
def test_damaged_statistics_are_refused_by_field(norm_stats, change, message):
    data = json.loads(norm_stats.read_text())
    change(data)
    norm_stats.write_text(json.dumps(data))
    with pytest.raises(VlaError, match=message):
        read_norm_stats(norm_stats, CONTRACT)


def test_an_unreadable_file_is_refused(tmp_path):
    with pytest.raises(VlaError, match='cannot be read'):
        read_norm_stats(tmp_path, CONTRACT)


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
