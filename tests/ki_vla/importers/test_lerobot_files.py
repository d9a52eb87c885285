"""lerobot's config.json and processors: statistics, normalisation, relative actions, cameras, versions."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.importers.policy import import_policy
from ki_vla.importers.questions import Answers
from ki_vla.policy.untrained import tiny_for, untrained_processor

CONTRACT = load_contract('arm_single').replace(horizon=12)
ABSOLUTE = CONTRACT.replace(actions=tuple(c.replace(representation='absolute') for c in CONTRACT.actions))
NAMES = [f'joint_{n}.pos' for n in range(7)] + ['gripper.pos']
STATS = {
    'observation.state': {'mean': 0.1, 'std': 0.4, 'min': -2.0, 'max': 2.0, 'q01': -1.0, 'q10': -0.5, 'q90': 0.7,
                          'q99': 1.2},
    'action': {'mean': 0.0, 'std': 0.2, 'min': -1.5, 'max': 1.5, 'q01': -0.8, 'q10': -0.4, 'q90': 0.4, 'q99': 0.8},
}  # fmt: skip


def configuration(version='0.6', **changes):
    """config.json, with the fields that a version has."""
    features = {f'observation.images.{name}': {'type': 'VISUAL', 'shape': [3, 480, 640]} for name in ('scene', 'wrist')}
    said = {
        'type': 'pi05', 'chunk_size': 12, 'n_action_steps': 12, 'tokenizer_max_length': 200, 'num_inference_steps': 8,
        'max_state_dim': 32, 'max_action_dim': 32, 'image_resolution': [224, 224],
        'input_features': features | {'observation.state': {'type': 'STATE', 'shape': [8]}},
        'output_features': {'action': {'type': 'ACTION', 'shape': [8]}},
        'normalization_mapping': {'VISUAL': 'IDENTITY', 'STATE': 'QUANTILES', 'ACTION': 'QUANTILES'},
    }  # fmt: skip
    if version == '0.6':
        said |= {
            'use_relative_actions': False, 'relative_exclude_joints': ['gripper'], 'action_feature_names': NAMES,
            'rtc_training_max_delay': 0,
        }  # fmt: skip
    return said | changes


def write_processors(folder, stats=STATS, columns=8, **changes):
    """Both processors; `changes` go into the normaliser's configuration."""
    norm = {'VISUAL': 'IDENTITY', 'STATE': 'QUANTILES', 'ACTION': 'QUANTILES'} | changes
    numbers = {
        f'{feature}.{name}': np.full(columns, value, np.float32)
        for feature, values in stats.items() for name, value in values.items()
    }  # fmt: skip
    for kind, step in (('preprocessor', 'normalizer_processor'), ('postprocessor', 'unnormalizer_processor')):
        file = f'policy_{kind}_step_2_{step}.safetensors'
        entry = {'registry_name': step, 'config': {'eps': 1e-8, 'norm_map': norm, 'features': {}}}
        if numbers:
            save_file(numbers, folder / file)
            entry['state_file'] = file
        steps = [{'registry_name': 'rename_observations_processor', 'config': {'rename_map': {}}}, entry]
        (folder / f'policy_{kind}.json').write_text(json.dumps({'name': f'policy_{kind}', 'steps': steps}))


@pytest.fixture
def bring_in(tables, write, tmp_path):
    """A fine-tuned pi05 of lerobot; returns how to import it with a config.json and answers."""
    config = tiny_for(CONTRACT).replace(name='pi05', action_dim=10, state_dim=10)
    write(tables[0](config, True, 'model.'), tmp_path / 'in' / 'model.safetensors')
    words = untrained_processor(CONTRACT).tokenizer

    def call(said, contract=ABSOLUTE, **answers):
        (tmp_path / 'in' / 'config.json').write_text(json.dumps(said))
        return import_policy(
            'lerobot', tmp_path / 'in', tmp_path / 'bundle', name='theirs', contract=contract, tokenizer=words,
            answers=Answers(**answers), config=config, overwrite=True,
        )  # fmt: skip

    write_processors(tmp_path / 'in')
    return call


def test_statistics_normalisation_steps_and_lengths_come_from_its_files(bring_in):
    made = bring_in(configuration(rtc_training_max_delay=5))
    processor, serving = made.bundle.processor, made.bundle.serving
    assert processor.config.max_prompt == 200
    assert (processor.processing.rules, processor.processing.state_text_columns) == ('lerobot', 0)
    np.testing.assert_allclose(processor.state_stats.q99, 1.2, rtol=1e-6)
    normal = processor.normalised_state(np.full(8, 0.1))
    np.testing.assert_allclose(normal, 2.0 * (0.1 + 1.0) / 2.2 - 1.0, atol=1e-6)
    assert (serving.denoise_steps, serving.max_delay, serving.mode) == (8, 5, 'rtc')
    assert made.said['views'] == 'scene <- scene, wrist <- wrist'


@pytest.mark.parametrize(
    ('mode', 'expected'),
    [
        ('QUANTILES', 2.0 * (0.3 + 0.8) / 1.6 - 1.0),
        ('QUANTILE10', 2.0 * (0.3 + 0.4) / 0.8 - 1.0),
        ('MIN_MAX', 2.0 * (0.3 + 1.5) / 3.0 - 1.0),
        ('MEAN_STD', 0.3 / (0.2 + 1e-8)),
        ('IDENTITY', 0.3),
    ],
)
def test_every_way_of_normalising_gives_lerobots_numbers(bring_in, tmp_path, mode, expected):
    write_processors(tmp_path / 'in', ACTION=mode)
    processor = bring_in(configuration()).bundle.processor
    shown = processor.carried(np.full((2, 8), 0.3), np.zeros(8))[0, :8]
    np.testing.assert_allclose(shown, expected, rtol=1e-5)
    np.testing.assert_allclose(
        processor.actions(processor.carried(np.full((2, 8), 0.3), np.zeros(8)), np.zeros(8)), 0.3, rtol=1e-5
    )
    assert processor.normalised_state(np.full(8, 0.1))[0] == pytest.approx(2.0 * 1.1 / 2.2 - 1.0, abs=1e-6)


def test_only_lerobot_0_4_fills_the_state_in_the_prompt_up(bring_in):
    with pytest.raises(VlaError, match=r'does not say whether lerobot 0\.4 trained .* write --pad-state yes if it did'):
        bring_in(configuration('0.4'))
    made = bring_in(configuration('0.4'), pad_state=True)
    assert made.bundle.processor.processing.state_text_columns == 32
    assert made.said['state'] == "as text in the prompt (lerobot's pi05, 32 numbers)"
    assert bring_in(configuration('0.4'), pad_state=False).bundle.processor.processing.state_text_columns == 0
    with pytest.raises(VlaError, match=r'only lerobot 0\.4 filled the state up'):
        bring_in(configuration(), pad_state=True)


def test_relative_actions_are_the_contracts_deltas_or_refused_by_column(bring_in):
    with pytest.raises(
        VlaError, match=r'column 1 \(joint_0\.pos\) is absolute, and joint1/position .* is delta; write'
    ):
        bring_in(configuration(), contract=CONTRACT)
    relative = configuration(use_relative_actions=True)
    with pytest.raises(
        VlaError, match=r'column 1 \(joint_0\.pos\) is delta, and joint1/position .* is absolute; write'
    ):
        bring_in(relative)
    assert bring_in(relative, contract=CONTRACT).said['actions'].endswith('gripper/position absolute')
    with pytest.raises(VlaError, match=r'column 8 \(gripper\.pos\) is delta, and gripper/position .* is absolute'):
        bring_in(relative | {'relative_exclude_joints': []}, contract=CONTRACT)


def test_a_base_model_has_no_statistics_and_asks_for_them(bring_in, tmp_path):
    write_processors(tmp_path / 'in', stats={})
    said = configuration()
    said['input_features']['observation.state']['shape'] = said['output_features']['action']['shape'] = [32]
    with pytest.raises(VlaError, match='its processors hold no statistics, as those of base models; give --stats'):
        bring_in(said, contract=CONTRACT)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'output_features': {'action': {'type': 'ACTION', 'shape': [7]}}}, r'output_features\.action has 7 columns'),
        ({'input_features': {'observation.images.wrist': {'type': 'VISUAL'}, 'observation.images.scene':
          {'type': 'VISUAL'}}}, 'its views stand in the order wrist, scene, and the cameras .* order scene, wrist'),
        ({'input_features': {'observation.images.top': {'type': 'VISUAL'}}},
         r'has 1 views \(top\), and arm_single has the cameras scene, wrist; say .* --camera top=scene'),
        ({'use_visual_memory': True}, 'use_visual_memory is true'),
        ({'image_resolution': [448, 448]}, r'only \[224, 224\]'),
        ({'type': 'smolvla'}, 'this is SmolVLA'),
        ({'input_features': ['observation.state']}, r"input_features is \['observation.state'\]; a table is needed"),
        ({'num_inference_steps': '8'}, "num_inference_steps is '8'; a whole number is needed"),
        ({'use_relative_actions': 'no'}, "use_relative_actions is 'no'; true or false is needed"),
        ({'num_inference_steps': 0}, 'denoise_steps'),
    ],
)  # fmt: skip
def test_a_policy_of_another_robot_or_family_is_refused_by_field(bring_in, tmp_path, change, message):
    with pytest.raises(VlaError, match=message):
        bring_in(configuration(**change))
    assert not (tmp_path / 'bundle').exists()


def test_damaged_processors_are_refused_by_file(bring_in, tmp_path):
    folder = tmp_path / 'in'
    write_processors(folder, columns=7)
    with pytest.raises(VlaError, match=r'observation\.state\.\w+ has the shape \[7\], and 8 columns are needed'):
        bring_in(configuration())
    write_processors(folder, stats={'observation.state': {'mean': 0.0, 'std': 1.0}, 'action': STATS['action']})
    with pytest.raises(VlaError, match=r'normalises observation\.state by QUANTILES and holds no q01, q99'):
        bring_in(configuration())
    write_processors(folder, STATE='LOGARITHM')
    with pytest.raises(VlaError, match="normalises by 'LOGARITHM'; QUANTILES, "):
        bring_in(configuration())
    write_processors(folder)
    (folder / 'policy_preprocessor_step_2_normalizer_processor.safetensors').write_bytes(b'cut off')
    with pytest.raises(VlaError, match=r'step_2_normalizer_processor\.safetensors: cannot be read'):
        bring_in(configuration())
    (folder / 'policy_preprocessor.json').write_text('{}')
    with pytest.raises(VlaError, match='has no list of steps'):
        bring_in(configuration())


def test_a_cameras_names_are_matched_by_the_user_where_they_differ(bring_in):
    said = configuration()
    features = {f'observation.images.{name}': {'type': 'VISUAL'} for name in ('top', 'hand', 'empty_camera_0')}
    said['input_features'] = features | {'observation.state': {'type': 'STATE', 'shape': [8]}}
    made = bring_in(said, cameras={'top': 'scene', 'hand': 'wrist'})
    assert made.said['views'] == 'top <- scene, hand <- wrist'
