"""A policy is held to an answer from elsewhere: the same one passes, another prompt, column or order does not."""

from dataclasses import replace

import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.policy.golden import answer, golden_observation, read_golden
from ki_vla.policy.inference import load_policy
from ki_vla.policy.untrained import write_untrained


@pytest.fixture(scope='module')
def policy(tmp_path_factory):
    bundle = write_untrained(tmp_path_factory.mktemp('golden') / 'arm', load_contract('arm_single'))
    with load_policy(bundle.folder, 'torch', allow_untrained=True) as loaded:
        yield loaded


@pytest.fixture
def parts(policy):
    """A golden file's parts, made by the policy itself."""
    golden = golden_observation(policy.bundle.processor)
    said = answer(policy, golden)
    images = {f'camera/{name}': image for name, image in golden.images.items()}
    return images | {
        'state': golden.state, 'instruction': np.array(golden.instruction), 'noise': golden.noise_HA,
        'actions': said.actions_HN, 'prompt': said.prompt_L,
    }  # fmt: skip


def held(policy, parts, tmp_path):
    np.savez(tmp_path / 'golden.npz', **parts)
    processor = policy.bundle.processor
    said = answer(policy, read_golden(tmp_path / 'golden.npz', processor))
    said.check(processor)
    return said


def test_the_same_answer_passes_and_says_by_how_much(policy, parts, tmp_path):
    said = held(policy, parts, tmp_path)
    assert said.error_HN.max() < 1e-5
    assert said.prompt.startswith('<bos>Task: pick up the red block, State: ') or 'Task: pick up' in said.prompt


def test_another_column_prompt_or_state_is_named(policy, parts, tmp_path):
    other = parts['actions'].copy()
    other[7, 2] += 1.0
    with pytest.raises(VlaError, match=r'joint3/position is .* golden answer at step 7; .* and 1 of 8 columns differ'):
        held(policy, parts | {'actions': other}, tmp_path)
    with pytest.raises(VlaError, match='the prompt is not that of the golden file'):
        held(policy, parts | {'prompt': parts['prompt'][:-1]}, tmp_path)
    with pytest.raises(VlaError, match='the prompt is not'):
        held(policy, parts | {'state': parts['state'] + 0.5}, tmp_path)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'noise': np.zeros((3, 3), np.float32)}, r'noise has the shape \(3, 3\); \(50, 8\) is needed'),
        ({'camera/scene': np.zeros((8, 8, 3), np.float32)}, r'camera/scene is float32 \(8, 8, 3\); uint8'),
        ({'actions': None}, 'has no actions; it has camera/scene, '),
    ],
)
def test_a_file_of_another_shape_is_refused_by_part(policy, parts, tmp_path, change, message):
    parts = {name: value for name, value in (parts | change).items() if value is not None}
    with pytest.raises(VlaError, match=message):
        held(policy, parts, tmp_path)


def test_a_file_with_objects_in_it_is_not_opened(policy, tmp_path):
    np.savez(tmp_path / 'evil.npz', state=np.array([{'a': 1}], dtype=object))
    with pytest.raises(VlaError, match='not a golden file'):
        read_golden(tmp_path / 'evil.npz', policy.bundle.processor)
    (tmp_path / 'cut.npz').write_bytes(b'PK\x03\x04cut off')
    with pytest.raises(VlaError, match='not a golden file'):
        read_golden(tmp_path / 'cut.npz', policy.bundle.processor)


def test_the_made_up_observation_shows_each_camera_another_picture(policy):
    golden = golden_observation(policy.bundle.processor)
    first, second = golden.images.values()
    assert not np.array_equal(first, second)
    assert answer(policy, replace(golden, actions_HN=None)).error_HN is None
