from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ki_vla.engine.exported import Export
from ki_vla.engine.interface import Choice, Engine, Shape, example_inputs
from ki_vla.engine.onnx import OnnxRunner
from ki_vla.engine.torch import MODES, TorchRunner
from ki_vla.errors import VlaError
from ki_vla.export.graphs import OPSET, check, export_graphs
from ki_vla.export.source import PARTS, of_bundle, of_model, of_noise
from ki_vla.model.config import preset
from ki_vla.model.kivla import KiVla
from ki_vla.policy.bundle import Bundle

GRAPHS = ('vision', 'prefix', 'plain', 'trained', 'guided')


def graph(bundle: Bundle, name: str) -> onnx.ModelProto:
    return onnx.load(bundle.folder / 'onnx' / 'fp32' / f'{name}.onnx', load_external_data=False)


@pytest.mark.parametrize('name', GRAPHS)
def test_graphs_pass_the_checker_and_name_what_they_are(exported: Bundle, name: str) -> None:
    check(exported.folder / 'onnx' / 'fp32' / f'{name}.onnx')
    model = graph(exported, name)
    assert [(each.domain, each.version) for each in model.opset_import if each.domain == ''] == [('', OPSET)]
    said = {each.key: each.value for each in model.metadata_props}
    assert said == {
        'graph': name,
        'ki.bundle': exported.digest,
        'ki.contract': exported.contract.hash,
        'ki.policy': exported.policy_id,
        'ki.precision': 'fp32',
        'ki.tolerance': 'cosine >= 0.999999, max_error <= 0.0001 (actions; of vision and prefix relative to the '
        'largest value)',
    }


def test_open_dimensions_have_names(exported: Bundle) -> None:
    def dimensions(name: str) -> dict[str, list[str | int]]:
        inputs = graph(exported, name).graph.input
        return {each.name: [d.dim_param or d.dim_value for d in each.type.tensor_type.shape.dim] for each in inputs}

    assert dimensions('vision') == {'images_uint8': ['views', 32, 32, 3]}
    assert dimensions('prefix')['image_tokens'] == ['views', 4, 64]
    assert dimensions('prefix')['prompt_ids'] == ['prompt']
    assert dimensions('plain')['prefix_keys'] == [2, 'prefix', 1, 16]
    assert dimensions('plain')['query_bias'] == [1, 'prefix + 50']


def test_files_say_nothing_of_the_machine_that_made_them(exported: Bundle) -> None:
    for name in GRAPHS:
        data = (exported.folder / 'onnx' / 'fp32' / f'{name}.onnx').read_bytes()
        assert b'.py' not in data
        assert str(Path.home()).encode() not in data


def test_weights_of_the_expert_are_written_once(exported: Bundle) -> None:
    """Three kinds of step share them: the file is little larger than the model."""
    size = (exported.folder / 'onnx' / 'fp32' / 'weights.data').stat().st_size
    assert size < 1.5 * exported.weights.stat().st_size


def test_the_guided_graph_holds_a_backward_pass(exported: Bundle) -> None:
    counts = {name: len(graph(exported, name).graph.node) for name in ('plain', 'guided')}
    assert counts['guided'] > 2 * counts['plain']


@pytest.mark.parametrize('name', PARTS)
def test_a_part_holds_its_own_weights_and_no_others(bundle: Bundle, name: str) -> None:
    whole = bundle.model().state_dict()
    for source in (of_bundle(bundle), of_model(bundle.model())):
        part = source.part(name)
        held = {key: value for key, value in part.state_dict().items() if not value.is_meta}
        assert held.keys() == {key for key in whole if key.startswith(PARTS[name])}
        assert all(torch.equal(value, whole[key]) for key, value in held.items())


def test_noise_is_the_same_whenever_it_is_asked_for() -> None:
    config = preset('tiny')
    one, other = of_noise(config).part('action'), of_noise(config).part('action')
    assert torch.equal(one.expert.action_in.weight, other.expert.action_in.weight)
    assert not torch.equal(one.expert.action_in.weight, of_noise(config, seed=1).part('action').expert.action_in.weight)


def test_pi0_with_its_state_token_is_exported(tmp_path: Path) -> None:
    tiny = preset('tiny', state_repr='suffix', adaptive=False)
    config = replace(tiny, backbone=replace(tiny.backbone, depth=1), expert=replace(tiny.expert, depth=1))
    source = of_noise(config)
    state_token = export_graphs(source, tmp_path, torch.float32, 3, ('plain',))
    assert state_token
    model = KiVla(config)
    model.load_state_dict(source.state(torch.float32))
    runners = (
        OnnxRunner(Export(tmp_path, 'fp32', ('plain',), 3, True, {}, {}), threads=1),
        TorchRunner(model, 3, MODES['eager']),
    )
    inputs = example_inputs(config, Shape(3, 40))
    found, expected = (Engine(each, config, Choice('', '', '', '', '')).infer(inputs) for each in runners)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_file_that_is_no_graph_does_not_pass_the_checker(tmp_path: Path) -> None:
    (tmp_path / 'broken.onnx').write_bytes(b'nothing')
    with pytest.raises(VlaError, match=r'onnx\.checker refuses it'):
        check(tmp_path / 'broken.onnx')
