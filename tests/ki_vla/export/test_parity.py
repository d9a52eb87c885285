from __future__ import annotations

import numpy as np
import pytest

from ki_vla.errors import VlaError
from ki_vla.export.parity import check, compare, reference, stated_tolerance, within
from ki_vla.export.source import of_model, of_noise
from ki_vla.model.config import preset
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla


def test_equal_arrays_compare_as_equal() -> None:
    values = np.linspace(-3.0, 2.0, 11)
    assert compare(values, values) == {'cosine': pytest.approx(1.0), 'max_error': 0.0, 'max_value': 3.0}
    assert compare(np.zeros(3), np.zeros(3))['cosine'] == 1.0
    assert compare(np.zeros(3), np.ones(3))['cosine'] == 0.0


def test_values_that_are_not_finite_never_pass() -> None:
    found = compare(np.array([1.0, np.nan]), np.array([1.0, 2.0]))
    for precision in ('fp32', 'fp16', 'bf16', 'int8'):
        with pytest.raises(VlaError, match=r'differs from torch: cosine 0\.0+ '):
            check({'vision': found}, precision)


@pytest.mark.parametrize('graph', ['vision', 'prefix'])
def test_errors_of_hidden_numbers_are_seen_against_the_largest(graph: str) -> None:
    small = {'cosine': 1.0, 'max_error': 5e-4, 'max_value': 1.0}
    check({graph: {**small, 'max_value': 10.0}}, 'fp32')
    with pytest.raises(VlaError, match=rf'fp32 graph {graph} differs from torch: .*largest error 5.00e-04 \(at most'):
        check({graph: small}, 'fp32')
    check({graph: small}, 'fp16')


@pytest.mark.parametrize('graph', ['plain', 'trained', 'guided', 'chunk'])
def test_errors_of_actions_are_absolute(graph: str) -> None:
    found = {'cosine': 1.0, 'max_error': 5e-4, 'max_value': 10.0}
    assert not within(graph, found, 'fp32')
    with pytest.raises(VlaError, match=f'fp32 graph {graph} differs .*at most 0.0001.*largest value 1.00e.01'):
        check({graph: found}, 'fp32')
    check({graph: {**found, 'max_error': 5e-5}}, 'fp32')
    check({graph: found}, 'fp16')


def test_what_must_be_kept_is_said_with_what_it_is_measured_in() -> None:
    assert stated_tolerance('fp32')['of'] == 'actions; of vision and prefix relative to the largest value'
    assert stated_tolerance('fp16') == {'cosine': 0.999, 'max_error': None}


@pytest.mark.parametrize(('precision', 'least'), [('fp16', 0.999), ('bf16', 0.999), ('int8', 0.99)])
def test_the_cosine_decides_for_smaller_precisions(precision: str, least: float) -> None:
    found = {'cosine': least + 1e-5, 'max_error': 1.0, 'max_value': 3.0}
    check({'chunk': found}, precision)
    with pytest.raises(VlaError, match=f'at least {least}'):
        check({'chunk': {**found, 'cosine': least - 1e-5}}, precision)


def test_an_untrained_expert_is_known_to_prove_nothing() -> None:
    """Fresh adaptive norms are closed: the chunk is the noise, and any graph would agree with it."""
    config = preset('tiny')
    assert reference(of_model(initialise(KiVla(config))), 2, ('plain',)).is_trivial
    assert not reference(of_noise(config), 2, ('plain',)).is_trivial
