"""The parameters of all nodes, as the reference docs list them and `ki up` checks them."""

from __future__ import annotations

import pytest

from ki.stack.node_parameters import check_parameters, settings_models
from ki_common.errors import KiError
from ki_common.node_settings import ParameterSpec
from ki_common.nodes import NODES

PARAMETERS = [(node, spec) for node, model in settings_models().items() for spec in model.specs().values()]


def test_every_node_has_a_model_of_its_parameters() -> None:
    assert list(settings_models()) == list(NODES)


@pytest.mark.parametrize(('node', 'spec'), PARAMETERS, ids=[f'{node}.{spec.name}' for node, spec in PARAMETERS])
def test_a_parameter_is_described_in_one_sentence_and_its_default_is_in_range(node: str, spec: ParameterSpec) -> None:
    assert spec.description.endswith('.')
    assert '\n' not in spec.description
    assert type(spec.default) is spec.kind
    if isinstance(spec.default, (int, float)):
        assert spec.low is None or spec.low <= spec.default
        assert spec.high is None or spec.default <= spec.high
    check_parameters(node, {spec.name: spec.default}, 'default')


def test_what_rclpy_declares_itself_is_taken_and_what_nobody_declares_is_not() -> None:
    check_parameters('recorder', {'use_sim_time': True, 'qos_overrides': {'/x': {}}, 'folder': 'bags'}, 'file')
    with pytest.raises(KiError, match="file has the unknown field 'foldr'; did you mean 'folder'"):
        check_parameters('recorder', {'foldr': 'bags'}, 'file')
