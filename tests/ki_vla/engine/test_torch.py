from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from ki_vla.engine.graphs import CapturedFunction, capture_cuda, capture_eagerly
from ki_vla.engine.interface import Carry, Choice, Engine, Shape, example_inputs, is_out_of_memory, prompt_buckets
from ki_vla.engine.packing import Fusions
from ki_vla.engine.torch import MODES, TorchMode, TorchRunner
from ki_vla.errors import VlaError
from ki_vla.model.config import preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla

STEPS = 3


def engine(make_model: Any, mode: str = 'packed', head: str = 'expert') -> Engine:
    model = make_model() if head == 'expert' else initialise(KiVla(preset('tiny', head=head)))
    config = model.config
    runner = TorchRunner(model, STEPS, MODES[mode], capture=capture_eagerly)
    return Engine(runner, config, Choice('torch', mode, 'cpu', 'fp32', 'a test'))


def carry(mode: str) -> Carry:
    rows = np.random.default_rng(1).standard_normal((6, 4)).astype(np.float32)
    return Carry(rows, delay=2, end=5, mode=mode)


@pytest.mark.parametrize('mode', ['packed', 'graphs'])
def test_every_mode_gives_the_chunk_of_the_model_itself(make_model: Any, mode: str) -> None:
    reference, tested = engine(make_model, 'eager'), engine(make_model, mode)
    with reference, tested:
        for length in (30, 48, 64):
            inputs = example_inputs(reference.config, Shape(3, length), seed=length)
            for each in (None, carry('guided'), carry('trained')):
                expected = reference.infer(inputs, seed=5, carry=each)
                np.testing.assert_allclose(tested.infer(inputs, seed=5, carry=each), expected, atol=1e-5)


@pytest.mark.slow
def test_compiled_stages_give_the_chunk_of_the_model_itself(make_model: Any) -> None:
    with engine(make_model, 'eager') as reference, engine(make_model, 'fast') as tested:
        inputs = example_inputs(reference.config, Shape(3, 48))
        for each in (None, carry('guided'), carry('trained')):
            np.testing.assert_allclose(tested.infer(inputs, carry=each), reference.infer(inputs, carry=each), atol=1e-5)


def test_padding_to_a_larger_bucket_does_not_change_the_chunk(make_model: Any) -> None:
    with engine(make_model) as tested:
        inputs = example_inputs(tested.config, Shape(3, 40))
        prefix = tested.prefill(inputs)
        assert prefix.shape == Shape(3, 48)
        longer = replace(
            inputs,
            prompt_L=np.pad(inputs.prompt_L, (0, 20)),
            prompt_mask_L=np.pad(inputs.prompt_mask_L, (0, 20)),
        )
        assert tested.prefill(longer).shape == Shape(3, 64)
        np.testing.assert_allclose(tested.infer(longer), tested.denoise(prefix), atol=1e-5)


def test_noise_comes_from_the_seed_or_from_the_caller(make_model: Any) -> None:
    with engine(make_model) as tested:
        prefix = tested.prefill(example_inputs(tested.config, Shape(3, 48)))
        noise = np.random.default_rng(7).standard_normal((8, 4), dtype=np.float32)
        np.testing.assert_array_equal(tested.denoise(prefix, seed=7), tested.denoise(prefix, noise))
        assert np.abs(tested.denoise(prefix, seed=8) - tested.denoise(prefix, seed=7)).max() > 1e-3


@pytest.mark.parametrize('mode', ['eager', 'packed', 'graphs'])
def test_stages_are_timed(make_model: Any, mode: str) -> None:
    with engine(make_model, mode) as tested:
        tested.infer(example_inputs(tested.config, Shape(3, 48)))
        expected = {'copy', 'prefix', 'prefill', 'denoise'} | (set() if mode == 'graphs' else {'vision'})
        assert set(tested.times_ms) == expected
        assert all(value >= 0.0 for value in tested.times_ms.values())


def test_warming_up_runs_every_bucket_and_reports_it(make_model: Any) -> None:
    lines: list[str] = []
    with engine(make_model) as tested:
        tested.warm_up(('plain', 'guided'), lines.append, rounds=1)
    assert [line.split(' warm')[0] for line in lines] == [
        'torch: 3 views, 48 prompt slots',
        'torch: 3 views, 64 prompt slots',
    ]


def test_a_prefix_in_shared_buffers_is_refused_when_it_was_overwritten(make_model: Any) -> None:
    with engine(make_model, 'graphs') as tested:
        inputs = example_inputs(tested.config, Shape(3, 48))
        old, short = tested.prefill(inputs), tested.prefill(example_inputs(tested.config, Shape(3, 60)))
        tested.denoise(old)  # another bucket has buffers of its own
        tested.prefill(inputs)
        tested.denoise(short)
        with pytest.raises(VlaError, match='overwritten by a later prefill'):
            tested.denoise(old)


def test_a_chunk_is_not_changed_by_the_next_one(make_model: Any) -> None:
    with engine(make_model, 'graphs') as tested:
        prefix = tested.prefill(example_inputs(tested.config, Shape(3, 48)))
        first = tested.denoise(prefix, seed=1)
        kept = first.copy()
        tested.denoise(prefix, seed=2)
        np.testing.assert_array_equal(first, kept)


def test_a_closed_engine_says_so(make_model: Any) -> None:
    tested = engine(make_model)
    tested.close()
    tested.close()
    with pytest.raises(VlaError, match='closed'):
        tested.prefill(example_inputs(tested.config, Shape(3, 48)))


@pytest.mark.parametrize(
    ('change', 'sentence'),
    [
        (
            {'images_VHWC': np.zeros((2, 32, 32, 3), np.uint8)},
            r'images_VHWC: uint8 \(2, 32, 32, 3\); .* \(3, 32, 32, 3\)',
        ),
        ({'images_VHWC': np.zeros((3, 32, 32, 3), np.float32)}, 'images_VHWC: float32'),
        ({'state_S': np.full(4, np.nan, np.float32)}, 'state_S: a value is not finite'),
        ({'prompt_L': np.full(48, 4096), 'prompt_mask_L': np.ones(48, bool)}, r'ids must lie in 0\.\.2047'),
        ({'prompt_L': np.zeros(65, int), 'prompt_mask_L': np.ones(65, bool)}, '65 tokens, the largest .* is 64'),
    ],
)
def test_inputs_that_do_not_fit_are_refused_by_name(make_model: Any, change: dict, sentence: str) -> None:
    with engine(make_model) as tested:
        inputs = example_inputs(tested.config, Shape(3, 48))
        with pytest.raises(VlaError, match=sentence):
            tested.prefill(replace(inputs, **change))


@pytest.mark.parametrize(
    ('given', 'sentence'),
    [
        (Carry(np.zeros((3, 4), np.float32), 2, 5), '3 steps are left of the old chunk, but 5 are needed'),
        (Carry(np.zeros((6, 5), np.float32), 2, 5), r'shape \(1, 6, 5\) should be'),
        (Carry(np.full((6, 4), np.inf, np.float32), 2, 5), 'not finite'),
        (Carry(np.zeros((6, 4), np.float32), 6, 5), 'delay 6 and end 5'),
        (Carry(np.zeros((6, 4), np.float32), 8, mode='trained'), 'below the horizon 8'),
        (Carry(np.zeros((6, 4), np.float32), 1, 5, mode='other'), "carry.mode: 'other' is unknown"),
        (Carry(np.zeros(4, np.float32), 1, 5), r'carry.previous_PA: shape \(4,\)'),
    ],
)
def test_a_chunk_that_cannot_be_continued_is_refused(make_model: Any, given: Carry, sentence: str) -> None:
    with engine(make_model) as tested:
        prefix = tested.prefill(example_inputs(tested.config, Shape(3, 48)))
        with pytest.raises(VlaError, match=sentence):
            tested.denoise(prefix, carry=given)


def test_noise_and_prefixes_of_others_are_refused(make_model: Any) -> None:
    with engine(make_model) as one, engine(make_model) as other:
        prefix = one.prefill(example_inputs(one.config, Shape(3, 48)))
        with pytest.raises(VlaError, match=r'noise: shape \(4, 8\); this model needs \(8, 4\)'):
            one.denoise(prefix, np.zeros((4, 8), np.float32))
        with pytest.raises(VlaError, match='another engine'):
            other.denoise(prefix)


def test_heads_without_an_expert_run_as_they_are(make_model: Any) -> None:
    with engine(make_model, 'eager', head='parallel') as tested:
        inputs = example_inputs(tested.config, Shape(3, 48))
        np.testing.assert_array_equal(tested.infer(inputs, seed=1), tested.infer(inputs, seed=2))
        with pytest.raises(VlaError, match='does not sample'):
            tested.infer(inputs, carry=carry('guided'))
    with pytest.raises(VlaError, match='no continuous actions'):
        engine(make_model, 'eager', head='none')


def test_weights_that_blow_up_are_told(make_model: Any) -> None:
    model = make_model(config=preset('tiny'))
    with torch.no_grad():
        model.expert.action_out.bias.fill_(torch.inf)
    runner = TorchRunner(model, STEPS, MODES['packed'])
    with (
        Engine(runner, model.config, Choice('torch', 'packed', 'cpu', 'fp32', '')) as tested,
        pytest.raises(VlaError, match='not finite'),
    ):
        tested.infer(example_inputs(model.config, Shape(3, 48)))


@pytest.mark.parametrize(
    'error',
    [
        MemoryError(),
        torch.OutOfMemoryError('CUDA out of memory'),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        RuntimeError('[ONNXRuntimeError] : Failed to allocate memory for requested buffer of size 1'),
    ],
)
def test_running_out_of_memory_is_one_sentence(make_model: Any, error: Exception, monkeypatch: Any) -> None:
    assert is_out_of_memory(error)
    with engine(make_model) as tested:

        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(tested._runner, 'prefill', fail)
        with pytest.raises(VlaError, match='out of memory while reading an observation: use a smaller precision'):
            tested.infer(example_inputs(tested.config, Shape(3, 48)))


@pytest.mark.skipif(torch.cuda.is_available(), reason='this is about machines without CUDA')
def test_cuda_graphs_without_cuda_say_what_to_take(make_model: Any) -> None:
    model = make_model(config=preset('tiny'))
    runner = TorchRunner(model, STEPS, MODES['graphs'])
    with pytest.raises(VlaError, match="need a CUDA device and there is none; take mode 'packed'"):
        runner.prefill(Shape(3, 48), example_inputs(model.config, Shape(3, 48)))
    with pytest.raises(VlaError, match='need packed stages'):
        TorchMode(fusions=None, graphs=True)
    assert TorchMode(fusions=Fusions()).compiled is False


def test_cuda_graphs_refuse_buffers_in_host_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    with pytest.raises(VlaError, match='need buffers on a CUDA device, and some are on cpu; take device cuda'):
        capture_cuda(lambda x: x, [torch.zeros(1)])


def test_fixed_buffers_copy_inputs_and_keep_shared_ones() -> None:
    source = CapturedFunction(lambda x: (x + 1.0, None), [torch.zeros(3)], capture=capture_eagerly)
    target = CapturedFunction(
        lambda x, y: x * y, [torch.ones(3), source.outputs[0]], shared=[1], capture=capture_eagerly
    )
    given = torch.tensor([1.0, 2.0, 3.0])
    source(given)
    given.zero_()
    assert target(torch.full((3,), 2.0)).tolist() == [4.0, 6.0, 8.0]
    source(torch.zeros(3))
    assert target(torch.full((3,), 2.0)).tolist() == [2.0, 2.0, 2.0]


def test_buckets_stop_at_the_longest_prompt_of_the_model() -> None:
    assert prompt_buckets(preset('tiny')) == [48, 64]
    assert prompt_buckets(preset('mini')) == [48, 96]
    assert prompt_buckets(preset('full')) == [48, 96, 200]
    assert prompt_buckets(preset('tiny', max_prompt=20)) == [20]
