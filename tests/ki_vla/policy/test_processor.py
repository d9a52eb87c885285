"""The processor: the same numbers in training and on the robot, and back again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.contract.contract import load_contract
from ki_robot.observation.observation import Observation
from ki_robot.transforms import Stats
from ki_vla.errors import VlaError
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.objective.batch import collate
from ki_vla.objective.recipes import recipe
from ki_vla.policy.model_inputs import Processing
from ki_vla.policy.processor import Processor
from ki_vla.policy.untrained import tiny_for, untrained_processor
from ki_vla.tokens.loc import box_text
from ki_vla.tokens.naive import NaiveCodec

CONTRACT = load_contract('bimanual_static').replace(horizon=12)  # one camera is not required
DELTA = load_contract('arm_single').replace(horizon=12)  # seven delta columns, an absolute gripper


@pytest.fixture(scope='module')
def processor() -> Processor:
    return untrained_processor(DELTA)


@pytest.fixture(scope='module')
def bimanual() -> Processor:
    return untrained_processor(CONTRACT)


def images(contract, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for name in contract.camera_names}


def chunk(processor, seed=0):
    """A smooth chunk within the limits, and a state near its beginning."""
    rng = np.random.default_rng(seed)
    low, high = processor.action_stats.q01, processor.action_stats.q99
    middle, span = (low + high) / 2, high - low
    walk = np.cumsum(rng.normal(0, 0.01, (processor.config.horizon, len(low))), axis=0)
    return middle + span * walk, middle[: len(processor.contract.state)].copy()


def test_observation_becomes_padded_views_state_and_prompt(processor):
    _, state = chunk(processor)
    observation = Observation(1, images(DELTA), {'scene': 1, 'wrist': 1}, state, 1, 'pick up the red block', 'a')
    shown = processor.observe(observation)
    size = processor.config.vision.image_size
    assert shown.images_VHWC.shape == (2, size, size, 3)
    assert shown.images_VHWC.dtype == np.uint8
    assert shown.image_mask_V.all()
    # 48 x 64 in a square: black bands above and below.
    assert not shown.images_VHWC[:, : size // 8].any()
    assert shown.images_VHWC[:, size // 2].any()
    assert shown.state_S.dtype == np.float32
    text = processor.tokenizer.decode(shown.prompt_L)
    assert text.startswith('Task: pick up the red block, State: ')
    assert text.endswith(';\nAction: ')


def test_missing_cameras_are_masked_where_allowed_and_refused_where_required(bimanual):
    seen = images(CONTRACT)
    del seen['low']
    views, mask = bimanual.views(seen)
    assert mask.tolist() == [True, False, True, True]
    assert not views[1].any()
    del seen['high']
    with pytest.raises(VlaError, match='camera high'):
        bimanual.views(seen)
    with pytest.raises(VlaError, match='unknown cameras'):
        bimanual.views(images(CONTRACT) | {'ceiling': np.zeros((4, 4, 3), np.uint8)})


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_targets_and_actions_are_inverse(processor, seed):
    actions, state = chunk(processor, seed)
    targets = processor.targets(actions, state)
    np.testing.assert_allclose(processor.actions(targets.actions_HA, state), actions, atol=1e-5)


def test_delta_columns_do_not_depend_on_where_the_robot_is(processor):
    actions, state = chunk(processor)
    shift = np.zeros(len(state))
    shift[:7] = 0.3
    moved = processor.targets(actions + shift, state + shift)
    np.testing.assert_allclose(moved.actions_HA, processor.targets(actions, state).actions_HA, atol=1e-6)
    absolute = processor.targets(actions + 0.01 * (shift == 0), state)
    assert np.abs(absolute.actions_HA[:, 7] - processor.targets(actions, state).actions_HA[:, 7]).min() > 0.1


def test_a_carried_chunk_stands_for_the_same_positions_after_the_robot_has_moved(processor):
    actions, state = chunk(processor)
    later = state + np.linspace(0.05, 0.2, len(state))
    carried = processor.carried(actions[4:], later)
    assert carried.shape == (8, processor.config.action_dim)
    assert carried.dtype == np.float32
    np.testing.assert_allclose(processor.actions(carried, later), actions[4:], atol=1e-5)
    # It is not what the old observation would have made of it, and not zeros.
    assert np.abs(carried - processor.carried(actions[4:], state)).max() > 0.01
    assert np.abs(carried).min(axis=1).max() > 0.0


def test_target_tokens_are_the_chunk_closed_by_bar_and_eos(processor):
    actions, state = chunk(processor)
    targets = processor.targets(actions, state)
    vocabulary = processor.tokenizer.vocabulary
    assert targets.target_T[-2:].tolist() == [vocabulary.bar, vocabulary.eos]
    assert targets.loss_mask_T.all()
    assert targets.action_token_T.all()
    assert targets.clipped == 0
    decoded = processor.decoded(targets.target_T, state)
    half_step = (processor.action_stats.q99 - processor.action_stats.q01) / 2 * np.sqrt(12) / 20
    assert (np.abs(decoded - actions) <= half_step + 1e-6).all()


def test_language_comes_before_the_action_tokens_and_the_prompt_stays_the_same(processor):
    actions, state = chunk(processor)
    plain, said = processor.targets(actions, state), processor.targets(actions, state, text='grasp the block')
    count = len(said.target_T) - len(plain.target_T)
    assert processor.tokenizer.decode(said.target_T[:count]) == 'grasp the block\n'
    np.testing.assert_array_equal(said.target_T[count:], plain.target_T)
    assert said.action_token_T.tolist() == [False] * count + [True] * len(plain.target_T)
    assert said.loss_mask_T.all()


def test_steps_beyond_the_episode_carry_no_loss(processor):
    actions, state = chunk(processor)
    steps = np.arange(12) < 7
    actions[7:] = np.nan
    targets = processor.targets(actions, state, steps=steps)
    assert targets.action_mask_HA[:7].all()
    assert not targets.action_mask_HA[7:].any()
    assert not targets.actions_HA[7:].any()
    assert targets.target_T.size == 0  # every FAST token would mix in steps that do not exist
    with pytest.raises(VlaError, match='not finite'):
        processor.targets(actions, state)


def test_kept_steps_train_the_action_tokens_but_never_the_continuous_loss():
    kept = untrained_processor(DELTA, processing=Processing(pad_steps='keep'))
    actions, state = chunk(kept)
    targets = kept.targets(actions, state, steps=np.arange(12) < 7)
    np.testing.assert_array_equal(targets.target_T, kept.targets(actions, state).target_T)
    assert targets.action_mask_HA.sum() == 7 * 8
    actions[9] = np.nan
    with pytest.raises(VlaError, match='not finite'):
        kept.targets(actions, state, steps=np.arange(12) < 7)


def test_naive_tokens_lose_exactly_those_of_steps_that_do_not_exist(processor):
    naive = replace(processor, codec=NaiveCodec(12, 8, stride=5))
    actions, state = chunk(naive)
    targets = naive.targets(actions, state, steps=np.arange(12) < 7)
    assert len(targets.target_T) == 3 * 8 + 2
    assert targets.loss_mask_T.tolist() == [True] * 16 + [False] * 8 + [True] * 2


def test_without_a_codec_there_are_no_target_tokens(processor):
    flow_only = replace(processor, codec=None)
    actions, state = chunk(flow_only)
    assert flow_only.targets(actions, state).target_T.size == 0
    with pytest.raises(VlaError, match='no action tokens'):
        flow_only.decoded([1, 2], state)


def test_padded_columns_are_zero_and_carry_no_loss():
    config = tiny_for(DELTA).replace(action_dim=11, state_dim=10)
    wide = untrained_processor(DELTA, config)
    actions, state = chunk(wide)
    targets = wide.targets(actions, state)
    assert not targets.actions_HA[:, 8:].any()
    assert not targets.action_mask_HA[:, 8:].any()
    assert wide.inputs(images(DELTA), state, 'go').state_S.shape == (10,)
    np.testing.assert_allclose(wide.actions(targets.actions_HA, state), actions, atol=1e-5)


def test_every_kind_of_sample_trains_in_one_batch(processor):
    actions, state = chunk(processor)
    box = box_text(np.array([0.1, 0.2, 0.3, 0.4]), processor.tokenizer.vocabulary.loc_bins)
    samples = [
        processor.action_sample(images(DELTA), state, 'pick up the block', actions),
        processor.action_sample(images(DELTA), state, 'tidy up', actions, text='grasp the block'),
        processor.action_sample(images(DELTA), state, 'tidy up', actions, steps=np.arange(12) < 5),
        processor.text_sample({'scene': images(DELTA)['scene']}, 'where is the block?', f'{box} block'),
        processor.text_sample([np.zeros((20, 30, 3), np.uint8)], 'caption', 'nothing but night'),
    ]
    batch = collate(samples).check(processor.config, values=True)
    assert batch.has_actions_B.tolist() == [True, True, True, False, False]
    model = initialise(KiVla(processor.config), torch.Generator().manual_seed(0))
    losses = model(batch, recipe('ours'))
    assert torch.isfinite(losses.total)
    assert int(losses.text_count) > 0
    assert int(losses.fast_count) > 0
    assert int(losses.action_count) == (12 + 12 + 5) * 8


def test_special_and_continuous_states_and_pi0s_prompt(processor):
    _, state = chunk(processor)
    start = processor.tokenizer.vocabulary.state_start
    special = replace(processor, config=processor.config.replace(state_repr='special'))
    ids = special.inputs(images(DELTA), state, 'go').prompt_L
    assert ((ids >= start) & (ids < start + 256)).sum() == 8
    continuous = replace(processor, config=processor.config.replace(state_repr='continuous'))
    assert processor.tokenizer.decode(continuous.inputs(images(DELTA), state, 'go').prompt_L) == 'Task: go;\nAction: '
    pi0 = replace(processor, config=processor.config.replace(state_repr='suffix', adaptive=False))
    assert processor.tokenizer.decode(pi0.inputs(images(DELTA), state, 'go').prompt_L) == 'go\n'


def test_a_policy_of_two_levels_is_asked_for_its_subtask_and_acts_on_it(processor):
    actions, state = chunk(processor)
    continuous = replace(
        processor, config=processor.config.replace(state_repr='continuous'), processing=Processing(subtasks=True)
    )

    def read(ids):
        return continuous.tokenizer.decode(ids)

    asked = continuous.inputs(images(DELTA), state, 'go', asks='Subtask')
    assert read(asked.prompt_L) == 'Task: go;\nSubtask: '
    sample = continuous.subtask_sample(images(DELTA), state, 'go', 'grasp the cup <loc0003>')
    assert read(sample['prompt_L']) == read(asked.prompt_L)
    assert read(sample['target_T']) == 'grasp the cup <loc0003>'
    assert sample['target_T'][-1] == continuous.tokenizer.vocabulary.eos
    assert not sample['action_mask_HA'].any()
    acted = continuous.action_sample(images(DELTA), state, 'go', actions, subtask='grasp the cup <loc0003>')
    assert read(acted['prompt_L']) == 'Task: go, Subtask: grasp the cup <loc0003>;\nAction: '
    np.testing.assert_array_equal(acted['target_T'], continuous.targets(actions, state).target_T)
    with_state = read(processor.inputs(images(DELTA), state, 'go', 'wait').prompt_L)
    assert with_state.startswith('Task: go, Subtask: wait, State: ')
    special = replace(processor, config=processor.config.replace(state_repr='special'))
    bins = special.inputs(images(DELTA), state, 'go', 'wait').prompt_L
    kept = bins[bins < special.tokenizer.vocabulary.state_start]
    assert read(kept) == 'Task: go, Subtask: wait, State: ;\nAction: '
    with pytest.raises(VlaError, match="the subtask of 'go' is empty"):
        continuous.subtask_sample(images(DELTA), state, 'go', ' ')
    with pytest.raises(VlaError, match='has no place for a subtask'):
        replace(
            processor,
            config=processor.config.replace(state_repr='suffix', adaptive=False),
            processing=Processing(subtasks=True),
        )


def test_long_instructions_are_refused_or_shortened_where_asked(processor):
    _, state = chunk(processor)
    long = 'and then pick up the next block ' * 30
    with pytest.raises(VlaError, match='shorten the instruction'):
        processor.inputs(images(DELTA), state, long)
    cut = replace(processor, processing=Processing(truncate_prompt=True)).inputs(images(DELTA), state, long)
    assert len(cut.prompt_L) <= processor.config.max_prompt
    assert processor.tokenizer.decode(cut.prompt_L).endswith(';\nAction: ')


def test_lower_case_is_a_choice(processor):
    _, state = chunk(processor)
    lower = replace(processor, processing=Processing(lower_case=True))
    assert lower.prompt('Pick UP', state) == processor.prompt('pick up', state)
    assert processor.prompt('Pick UP', state) != processor.prompt('pick up', state)


def test_z_scores_are_a_choice(processor):
    _, state = chunk(processor)
    z = replace(processor, processing=Processing(normalisation='zscore'))
    np.testing.assert_allclose(
        z.normalised_state(state), (state - z.state_stats.mean) / (z.state_stats.std + 1e-6), atol=1e-9
    )


def test_a_policy_trained_elsewhere_is_shown_the_state_as_it_was_there(processor):
    """lerobot 0.4 fills the text up to 32 numbers; openpi writes -1 for what lies below the range."""
    _, state = chunk(processor)
    state = state.copy()
    state[0] = processor.state_stats.q01[0] - 1.0
    config = processor.config.replace(max_prompt=400)
    old = Processing(rules='lerobot', state_text_columns=32)
    text = processor.tokenizer.decode(replace(processor, config=config, processing=old).prompt('go', np.zeros(8)))
    assert text == f'Task: go, State: {" ".join(["128"] * 32)};\nAction: '
    theirs = replace(processor, config=config, processing=Processing(state_text_lowest=-1))
    shown = theirs.tokenizer.decode(theirs.inputs(images(DELTA), state, 'go').prompt_L)
    assert shown.startswith('Task: go, State: -1 ')
    ours = processor.tokenizer.decode(processor.inputs(images(DELTA), state, 'go').prompt_L)
    assert ours.startswith('Task: go, State: 0 ')


def test_a_state_that_is_not_shown_stands_in_no_prompt(processor):
    _, state = chunk(processor)
    blind = replace(processor, config=processor.config.replace(state_repr='none'))
    assert blind.tokenizer.decode(blind.inputs(images(DELTA), state, 'go').prompt_L) == 'go\n'
    with pytest.raises(VlaError, match="state_repr 'none'"):
        replace(blind, processing=Processing(subtasks=True))


def test_state_and_actions_may_be_normalised_in_different_ways(processor):
    _, state = chunk(processor)
    mixed = replace(processor, processing=Processing(rules='lerobot', state_normalisation='identity'))
    np.testing.assert_array_equal(mixed.normalised_state(state), state)
    assert not np.array_equal(mixed.carried(np.tile(state, (2, 1)), state)[0, :8], state)


def test_bad_numbers_are_refused_by_name(processor):
    actions, state = chunk(processor)
    state[2] = np.inf
    with pytest.raises(VlaError, match='joint3/position is not finite'):
        processor.inputs(images(DELTA), state, 'go')
    with pytest.raises(VlaError, match='8 columns'):
        processor.inputs(images(DELTA), state[:5], 'go')
    with pytest.raises(VlaError, match='model actions'):
        processor.actions(np.full((12, 8), np.nan), np.zeros(8))
    with pytest.raises(VlaError, match='8 columns are needed'):
        processor.actions(np.zeros((12, 5)), np.zeros(8))
    with pytest.raises(VlaError, match='shape'):
        processor.targets(actions[:3], np.zeros(8))
    with pytest.raises(VlaError, match='steps'):
        processor.targets(actions, np.zeros(8), steps=np.ones(12))


def test_text_samples_need_a_picture_and_an_answer(processor):
    with pytest.raises(VlaError, match='0 pictures'):
        processor.text_sample([], 'what?', 'this')
    with pytest.raises(VlaError, match='is empty'):
        processor.text_sample([np.zeros((4, 4, 3), np.uint8)], 'what?', ' ')


def test_parts_that_do_not_fit_are_refused_by_field(processor):
    parts = {
        'model.horizon and contract.horizon': {'contract': DELTA.replace(horizon=9)},
        'model.vocab_size and the vocabulary': {'config': processor.config.replace(vocab_size=999)},
        'model.views': {'config': processor.config.replace(views=1)},
        'model.action_dim': {'config': processor.config.replace(action_dim=7)},
        'codec.horizon and model.horizon': {'codec': NaiveCodec(11, 8)},
        'codec.columns and the action columns': {'codec': NaiveCodec(12, 7)},
    }
    for message, change in parts.items():
        with pytest.raises(VlaError, match=message):
            replace(processor, **change)


def test_statistics_of_another_robot_are_refused(processor):
    stats = processor.action_stats
    renamed = Stats(('x/position', *stats.names[1:]), stats.mean, stats.std, stats.q01, stats.q99, 1)
    with pytest.raises(VlaError, match='x/position'):
        replace(processor, action_stats=renamed)


def test_choices_that_do_not_exist_are_refused():
    with pytest.raises(VlaError, match='normalisation'):
        Processing(normalisation='minmax')
    with pytest.raises(VlaError, match='pad_steps'):
        Processing(pad_steps='zero')
    with pytest.raises(VlaError, match='normalisation'):
        Processing(normalisation=[])
    with pytest.raises(VlaError, match='true or false'):
        Processing(lower_case='yes')


def by_step(processor: Processor) -> Processor:
    """The same policy, each step of a chunk scaled by its own moments."""
    H, N = processor.config.horizon, len(processor.contract.actions)
    spread = np.linspace(0.01, 1.0, H)[:, None] * np.linspace(1.0, 2.0, N)
    stats = replace(processor.action_stats, step_mean_HN=spread / 7, step_std_HN=spread)
    processing = processor.processing.replace(flow_scale='step')
    return replace(processor, action_stats=Stats.from_dict(stats.to_dict()), processing=processing)


def test_a_scale_for_each_step_is_undone_step_by_step_and_leaves_tokens_as_they_are(processor):
    actions, state = chunk(processor)
    stepped = by_step(processor)
    ours, plain = stepped.targets(actions, state), processor.targets(actions, state)
    assert np.array_equal(ours.target_T, plain.target_T)
    assert not np.allclose(ours.actions_HA, plain.actions_HA)
    np.testing.assert_allclose(stepped.actions(ours.actions_HA, state), actions, atol=1e-5)
    carried = stepped.carried(actions[:4], state)
    np.testing.assert_allclose(carried, ours.actions_HA[:4], atol=1e-6)


def test_a_scale_for_each_step_needs_moments_of_as_many_steps(processor):
    processing = processor.processing.replace(flow_scale='step')
    with pytest.raises(VlaError, match=r'flow_scale is step: stats\.step_mean is missing'):
        replace(processor, processing=processing)
    stats = replace(by_step(processor).action_stats, step_mean_HN=np.zeros((3, 8)), step_std_HN=np.ones((3, 8)))
    with pytest.raises(VlaError, match=r'stats\.step_mean has 3 steps and model\.horizon is 12'):
        replace(processor, processing=processing, action_stats=stats)
