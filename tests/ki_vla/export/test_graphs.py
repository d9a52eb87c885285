from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from ki_robot.contract.contract import load_contract
from ki_vla.engine.interface import Carry, Shape, example_inputs
from ki_vla.engine.onnx import open_session
from ki_vla.engine.select import open_engine
from ki_vla.engine.stages import KINDS
from ki_vla.errors import VlaError
from ki_vla.export.graphs import OPSET, check
from ki_vla.export.source import PARTS, of_bundle, of_model, of_noise
from ki_vla.export.write import export_onnx
from ki_vla.model.config import preset
from ki_vla.objective.recipes import recipe
from ki_vla.policy.bundle import Bundle, write_bundle
from ki_vla.policy.model_inputs import Processing
from ki_vla.policy.untrained import tiny_for, untrained_processor

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
    assert dimensions('prefix')['image_mask'] == ['views']
    assert dimensions('prefix')['prompt_mask'] == ['prompt']
    assert dimensions('plain')['query_bias'] == [1, 'context']


def test_a_session_of_a_static_shape_leaves_no_dimension_open(exported: Bundle) -> None:
    views, prompt = 3, 48
    prefix = views * exported.config.vision.tokens + prompt
    steps = {'prefix': prefix, 'context': prefix + exported.config.horizon}
    sizes = {'vision': {'views': views}, 'prefix': {'views': views, 'prompt': prompt}, **dict.fromkeys(KINDS, steps)}
    for name, fixed in sizes.items():
        session = open_session(exported.folder / 'onnx' / 'fp32' / f'{name}.onnx', sizes=fixed, threads=1)
        for value in (*session.get_inputs(), *session.get_outputs()):
            assert all(isinstance(size, int) for size in value.shape), f'{name}: {value.name} {value.shape}'


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


@pytest.mark.slow  # its stages are held to the model in tests/ki_vla/engine, and the export of every kind above
def test_pi0_is_exported(tmp_path: Path) -> None:
    """Its time MLP stands inside the guided step, whose backward pass has an operator that ONNX does not know.

    The bundle of the tests above is exported with every way of denoising; it has no such MLP.
    """
    contract = load_contract('arm_single')
    tiny = recipe('pi0').configure(tiny_for(contract))
    config = tiny.replace(
        vision=tiny.vision.replace(depth=1),
        backbone=tiny.backbone.replace(depth=1),
        expert=tiny.expert.replace(depth=1),
    )
    processor = untrained_processor(contract, config, Processing(normalisation='zscore'))
    state = of_noise(config).state(torch.float32)
    made = write_bundle(tmp_path / 'pi0', name='pi0', weights=state, processor=processor)
    export = export_onnx(made, kinds=KINDS)
    assert export.kinds == KINDS
    assert export.state_token
    assert set(export.parity) == {'vision', 'prefix', 'chunk', *KINDS}
    previous = np.random.default_rng(4).standard_normal((config.horizon - 5, config.action_dim), np.float32)
    inputs = example_inputs(config, Shape(len(contract.cameras), 40))
    with open_engine(made, 'torch', strict=True, mode='eager') as torch_engine, open_engine(made, 'onnx') as tested:
        for kind in KINDS:
            carry = None if kind == 'plain' else Carry(previous, 4, 30, kind)
            expected = torch_engine.infer(inputs, carry=carry)
            np.testing.assert_allclose(tested.infer(inputs, carry=carry), expected, atol=1e-4)


def test_a_file_that_is_no_graph_does_not_pass_the_checker(tmp_path: Path) -> None:
    (tmp_path / 'broken.onnx').write_bytes(b'nothing')
    with pytest.raises(VlaError, match=r'onnx\.checker refuses it'):
        check(tmp_path / 'broken.onnx')
