"""A bundle behind the node: processor and engine together, carried chunks, and the refusal of another robot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ki_common.errors import KiError
from ki_policy_node.cycle.continuation import Planner, Timing
from ki_policy_node.errors import NodeError
from ki_policy_node.policy.backends import Wanted, open_policy
from ki_robot.contract.contract import Contract
from ki_robot.observation.observation import Observation
from ki_vla.policy.bundle import load_bundle, write_bundle
from ki_vla.policy.model_inputs import Processing
from ki_vla.policy.serving import Serving
from ki_vla.policy.subtasks import SubtaskGenerator
from ki_vla.policy.untrained import write_untrained

STEP = 50_000_000
START = 10**18


@pytest.fixture(scope='module')
def contract(rigs) -> Contract:
    return Contract.parse(rigs.small_robot())


@pytest.fixture(scope='module')
def bundle(contract, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp('bundles') / 'small'
    write_untrained(folder, contract)
    return str(folder)


def seen(step: int = 0) -> Observation:
    stamp = START + step * STEP
    images = {name: np.full((48, 64, 3), 90, np.uint8) for name in ('scene', 'wrist')}
    stamps = dict.fromkeys(images, stamp)
    return Observation(stamp, images, stamps, np.array([0.1, -0.2, 0.3]), stamp, 'wave', 'a')


def opened(bundle, contract, mode='guided', **wanted):
    timing = Timing(mode, execute_steps=10)
    return open_policy(Wanted('torch', bundle, **{'allow_untrained': True, **wanted}), contract, timing), timing


def test_the_same_stamps_give_the_same_chunk_and_others_another(bundle, contract):
    policy, _ = opened(bundle, contract)
    with_seed, _ = opened(bundle, contract, seed=1)
    one, again = (policy.infer(seen(), None, 0, 0) for _ in range(2))
    assert one.data_HN.shape == (50, 4)
    assert np.isfinite(one.data_HN).all()
    assert np.array_equal(one.data_HN, again.data_HN)
    assert not np.array_equal(one.data_HN, policy.infer(seen(1), None, 0, 0).data_HN)
    assert not np.array_equal(one.data_HN, with_seed.infer(seen(), None, 0, 0).data_HN)
    assert one.inference_ns > 0
    assert policy.policy_id.startswith('untrained@')
    assert policy.backend == 'torch'


def test_a_policy_of_two_levels_acts_on_what_it_says(bundle, contract, tmp_path, monkeypatch):
    plain = load_bundle(bundle)
    processor = replace(plain.processor, processing=Processing(subtasks=True))
    model = plain.model()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.expert.parameters():  # an untrained expert's norms are closed: it looks at nothing
            parameter.normal_(0.0, 0.1)
    write_bundle(tmp_path / 'two', name='two', weights=model, processor=processor)
    policy, _ = opened(str(tmp_path / 'two'), contract)
    policy.warm_up()
    chunks = []
    for words in ('reach for the cup', 'let go', 'reach for the cup'):
        monkeypatch.setattr(SubtaskGenerator, 'next', lambda *_, words=words: words)
        chunks.append(policy.infer(seen(), None, 0, 0).data_HN)
    assert np.array_equal(chunks[0], chunks[2])
    assert not np.array_equal(chunks[0], chunks[1])


def test_denoising_steps_are_those_that_are_asked_for(bundle, contract, tmp_path):
    # Untrained, the field is straight, and any number of steps ends in one place; a bent one tells them apart.
    straight = load_bundle(bundle)
    model = straight.model()
    with torch.no_grad():
        model.expert.action_out.weight.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(0))
    write_bundle(tmp_path / 'bent', name='bent', weights=model, processor=straight.processor)
    default, ten, one = (opened(str(tmp_path / 'bent'), contract, denoise_steps=steps)[0] for steps in (0, 10, 1))
    said = [policy.infer(seen(), None, 0, 0).data_HN for policy in (default, ten, one)]
    assert np.array_equal(said[0], said[1])
    assert np.abs(said[0] - said[2]).max() > 1e-3


def test_a_chunk_continues_the_one_before_within_the_first_steps(bundle, contract):
    policy, timing = opened(bundle, contract)
    old = policy.infer(seen(), None, 0, 0).data_HN
    free = policy.infer(seen(10), None, 0, 0).data_HN
    continued = policy.infer(seen(10), old[10:], 4, 0).data_HN
    assert np.abs(continued[:4] - old[10:14]).mean() < 0.5 * np.abs(free[:4] - old[10:14]).mean()
    planner = Planner(policy, timing)
    for step in (0, 10, 20):
        planned = planner.plan(seen(step), 0, lambda step=step: START + round((step + 2.2) * STEP))
        planner.commit(planned)
    assert planned.expected_delay == planned.delay == 3
    assert planned.chunk.frozen_prefix == 3


def test_a_policy_that_was_trained_with_delays_is_continued_in_the_trained_way_up_to_its_delay(
    bundle, contract, tmp_path, caplog
):
    plain = load_bundle(bundle)
    serving = Serving(mode='rtc', execute_steps=10, max_delay=3)
    write_bundle(tmp_path / 'rtc', name='rtc', weights=plain.weights, processor=plain.processor, serving=serving)
    policy, timing = opened(str(tmp_path / 'rtc'), contract, 'auto')
    old = policy.infer(seen(), None, 0, 0).data_HN
    within = policy.infer(seen(10), old[10:], 3, 0).data_HN
    np.testing.assert_allclose(within[:3], old[10:13], atol=1e-6)
    planner = Planner(policy, timing)
    for step, late in ((0, 1.0), (10, 5.0), (20, 5.0)):
        planned = planner.plan(seen(step), 0, lambda step=step, late=late: START + round((step + late) * STEP))
        planner.commit(planned)
    unbound, _ = opened(str(tmp_path / 'rtc'), contract, 'latest')
    assert np.array_equal(planned.raw.data_HN, unbound.infer(seen(20), None, 0, 0).data_HN), 'not trained for 5'
    assert 'beyond the 3 that' in planned.note
    assert 'beyond the 3 that' in caplog.text


def test_rtc_is_refused_for_a_bundle_without_trained_delays(bundle, contract):
    with pytest.raises(NodeError, match=r'mode is rtc, and untrained@.* was not trained to continue'):
        opened(bundle, contract, 'rtc')


def test_an_untrained_policy_is_refused_unless_it_is_allowed(bundle, contract):
    with pytest.raises(KiError, match=r'untrained@.*reached its action head .* allow_untrained: true'):
        opened(bundle, contract, allow_untrained=False)


def test_without_rtc_nothing_is_carried(bundle, contract):
    policy, _ = opened(bundle, contract, 'latest')
    old = np.zeros((40, 4))
    assert np.array_equal(policy.infer(seen(), old, 4, 0).data_HN, policy.infer(seen(), None, 0, 0).data_HN)


def test_another_robot_is_refused_by_field(rigs, bundle):
    plain = rigs.small_robot()
    plain['cameras'][0]['name'] = 'ceiling'
    plain['rate_hz'] = 25.0
    with pytest.raises(KiError, match=r'does not fit.*rate_hz.*cameras'):
        opened(bundle, Contract.parse(plain))


@pytest.mark.parametrize(
    ('wanted', 'why'),
    [
        (Wanted('torch', ''), 'Parameter bundle is empty'),
        (Wanted('torch', '/nowhere'), 'which is no folder'),
        (Wanted('cuda'), "Backend 'cuda' is unknown"),
    ],
)
def test_what_cannot_be_opened_is_one_sentence(contract, wanted, why):
    with pytest.raises(NodeError, match=why):
        open_policy(wanted, contract, Timing())
