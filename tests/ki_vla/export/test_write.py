from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

from ki_vla.engine.exported import Export, find_export
from ki_vla.engine.interface import Carry, Shape, example_inputs
from ki_vla.engine.onnx import available_providers
from ki_vla.engine.select import open_engine
from ki_vla.errors import VlaError
from ki_vla.export.quantise import quantise
from ki_vla.export.source import of_noise
from ki_vla.export.write import _on_observations, export_onnx
from ki_vla.model.config import PointerConfig
from ki_vla.policy.bundle import Bundle


def copy_of(bundle: Bundle, tmp_path: Path) -> Bundle:
    shutil.copytree(bundle.folder, tmp_path / 'copy')
    return replace(bundle, folder=tmp_path / 'copy')


def test_the_bundle_says_how_close_every_graph_is(exported: Bundle) -> None:
    table = json.loads((exported.folder / 'onnx' / 'parity.json').read_text())
    entry = table['precisions']['fp32']
    assert entry['bundle'] == exported.digest
    assert entry['contract'] == exported.contract.hash
    relative = 'actions; of vision and prefix relative to the largest value'
    assert entry['tolerance'] == {'cosine': 0.999999, 'max_error': 1e-4, 'of': relative}
    assert set(entry['parity']) == {'vision', 'prefix', 'plain', 'trained', 'guided', 'chunk'}
    for found in entry['parity'].values():
        assert found['max_error'] < 1e-4
        assert found['cosine'] > 0.999999
        assert found['max_value'] > 0.1
    assert {'torch', 'onnx', 'onnxruntime'} <= set(entry['made_with'])


def test_an_export_does_not_change_what_the_policy_is(exported: Bundle) -> None:
    from ki_vla.policy.bundle import load_bundle

    assert load_bundle(exported.folder).digest == exported.digest


@pytest.mark.parametrize('precision', [pytest.param('fp16', marks=pytest.mark.slow), 'int8'])
def test_smaller_precisions_stay_within_their_tolerance(exported: Bundle, tmp_path: Path, precision: str) -> None:
    copy = copy_of(exported, tmp_path)
    lines: list[str] = []
    made = export_onnx(copy, precision, kinds=('plain',), progress=lines.append)
    least = {'fp16': 0.999, 'int8': 0.99}[precision]
    assert all(least < found['cosine'] < 1.0 for found in made.parity.values())
    assert lines[-1].endswith('graphs agree with torch')
    assert any('float32 graphs that are there' in line for line in lines) == (precision == 'int8')
    said = {
        each.key: each.value for each in onnx.load(made.folder / 'plain.onnx', load_external_data=False).metadata_props
    }
    assert (said['ki.precision'], said['ki.bundle'], said['graph']) == (precision, copy.digest, 'plain')
    with open_engine(copy, 'onnx', strict=True, precision=precision, threads=1) as engine:
        assert engine.kinds == ('plain',)
        assert engine.infer(example_inputs(copy.config, Shape(3, 20))).shape == (50, copy.config.action_dim)


def test_graphs_that_differ_from_torch_are_not_written_and_old_ones_stay(exported: Bundle, tmp_path: Path) -> None:
    copy = copy_of(exported, tmp_path)
    before = {path: path.read_bytes() for path in sorted((copy.folder / 'onnx').rglob('*')) if path.is_file()}
    # Graphs of these weights, judged by a model with others.
    with pytest.raises(VlaError, match=r'int8 graph vision differs from torch: cosine '):
        export_onnx(copy, 'int8', kinds=('plain',), source=of_noise(copy.config, seed=1))
    after = {path: path.read_bytes() for path in sorted((copy.folder / 'onnx').rglob('*')) if path.is_file()}
    assert after == before
    assert [path.name for path in (copy.folder / 'onnx').iterdir() if path.name.startswith('.')] == []


def test_bf16_cannot_be_checked_on_a_cpu_and_is_not_written(bundle: Bundle, tmp_path: Path) -> None:
    copy = copy_of(bundle, tmp_path)
    with pytest.raises(VlaError, match='bf16: ONNX Runtime has no bfloat16 products on a CPU'):
        export_onnx(copy, 'bf16')
    assert not (copy.folder / 'onnx').exists()


def test_tokens_of_several_steps_are_exported_and_continue_a_chunk_by_whole_tokens(make_bundle: Any) -> None:
    made = make_bundle(steps_per_token=5)
    export = export_onnx(made, 'fp32', steps=2)
    assert export.kinds == ('plain', 'trained', 'guided')
    noise = np.random.default_rng(0).standard_normal((made.config.horizon, made.config.action_dim), np.float32)
    inputs = example_inputs(made.config, Shape(3, 20))
    previous = np.random.default_rng(1).standard_normal(noise.shape, np.float32)
    chunks = []
    for backend in ('torch', 'onnx'):
        with open_engine(made, backend, device='cpu', steps=2) as engine:
            assert engine.kinds == export.kinds
            after = engine.infer(inputs, noise, carry=Carry(previous, delay=3, mode='trained'))
            np.testing.assert_array_equal(after[:5], previous[:5], 'the token that the delay ends in is given whole')
            chunks.append(np.concatenate([engine.infer(inputs, noise), after]))
    np.testing.assert_allclose(*chunks, atol=1e-4)


def test_an_expert_that_hears_a_pointer_is_exported_with_it(make_bundle: Any) -> None:
    made = make_bundle(state_repr='both', pointer=PointerConfig(layer=1))
    export_onnx(made, 'fp32', steps=2, kinds=('plain',))
    inputs = example_inputs(made.config, Shape(3, 20))
    noise = np.random.default_rng(0).standard_normal((made.config.horizon, made.config.action_dim), np.float32)
    chunks = []
    for backend in ('torch', 'onnx'):
        with open_engine(made, backend, device='cpu', steps=2) as engine:
            chunks.append(engine.infer(inputs, noise))
    np.testing.assert_allclose(*chunks, atol=1e-4)


@pytest.mark.parametrize(
    ('precision', 'kinds', 'sentence'),
    [
        ('fp8', ('plain',), "precision 'fp8' is unknown; choose one of fp32, fp16, bf16, int8"),
        ('fp32', ('plain', 'sideways'), 'kinds plain, sideways: choose of plain, trained, guided'),
        ('fp32', ('guided',), '"plain" among them'),
    ],
)
def test_unknown_choices_are_named(bundle: Bundle, precision: str, kinds: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(VlaError, match=sentence):
        export_onnx(bundle, precision, kinds=kinds)


def test_quantising_does_not_rely_on_what_an_exporter_noted_of_shapes(exported: Bundle, tmp_path: Path) -> None:
    shutil.copytree(exported.folder / 'onnx' / 'fp32', tmp_path / 'fp32')
    path = tmp_path / 'fp32' / 'plain.onnx'
    model = onnx.load(path, load_external_data=False)
    for noted in model.graph.value_info:
        for size in noted.type.tensor_type.shape.dim:
            size.dim_value += 1
    onnx.save(model, path)
    quantise(tmp_path / 'fp32', {})
    assert 'MatMulInteger' in {node.op_type for node in onnx.load(path).graph.node}


def test_the_command_exports_and_shows_the_figures(exported: Bundle, tmp_path: Path) -> None:
    from ki.main import app

    copy = copy_of(exported, tmp_path)
    done = CliRunner().invoke(
        app, ['export', str(copy.folder), '--precision', 'int8', '--kinds', 'plain', '--scenes', '0']
    )
    assert done.exit_code == 0, done.output
    assert 'chunk' in done.output
    assert find_export(copy.folder, copy.digest, 'int8').kinds == ('plain',)


def export_again(copy: Bundle, precision: str, *options: str) -> Export:
    """`ki export --missing`; the export that is there then."""
    from ki.main import app

    done = CliRunner().invoke(
        app, ['export', str(copy.folder), '--missing', '--scenes', '0', '--precision', precision, *options]
    )
    assert done.exit_code == 0, done.output
    return find_export(copy.folder, copy.digest, precision)


def times_of(export: Export) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in export.folder.iterdir()}


def test_what_is_there_is_exported_again_only_when_more_is_asked_for(exported: Bundle, tmp_path: Path) -> None:
    copy = copy_of(exported, tmp_path)
    there = export_again(copy, 'int8', '--kinds', 'plain')
    before = times_of(there)
    assert times_of(export_again(copy, 'int8', '--kinds', 'plain')) == before
    assert export_again(copy, 'int8', '--kinds', 'plain,trained').kinds == ('plain', 'trained')


@pytest.mark.slow
def test_what_is_there_is_exported_again_for_other_steps(exported: Bundle, tmp_path: Path) -> None:
    """Graphs of other steps are made anew; the test above takes those that are there, which is quick."""
    copy = copy_of(exported, tmp_path)
    there = find_export(copy.folder, copy.digest, 'fp32')
    same = ('--kinds', ','.join(there.kinds), '--steps', str(there.steps))
    before = times_of(there)
    assert times_of(export_again(copy, 'fp32', *same)) == before
    assert export_again(copy, 'fp32', '--kinds', 'plain', '--steps', '3').steps == 3


@pytest.mark.parametrize(
    ('arguments', 'sentence'),
    [
        (['--to', 'paper'], '--to paper: choose onnx or tensorrt.'),
        (['--device', 'tpu'], '--device tpu: choose cpu or cuda.'),
    ],
)
def test_the_command_refuses_in_one_sentence(bundle: Bundle, arguments: list[str], sentence: str) -> None:
    from ki.main import app

    done = CliRunner().invoke(app, ['export', str(bundle.folder), *arguments])
    assert isinstance(done.exception, VlaError)
    assert str(done.exception) == sentence


@pytest.mark.skipif('CUDAExecutionProvider' in available_providers(), reason='this is about machines without CUDA')
def test_a_check_on_another_device_is_missing_where_only_the_cpu_checked(exported: Bundle) -> None:
    from ki.main import app

    done = CliRunner().invoke(app, ['export', str(exported.folder), '--missing', '--device', 'cuda'])
    assert isinstance(done.exception, VlaError)
    assert 'no CUDAExecutionProvider here' in str(done.exception)


def test_graphs_must_agree_on_observations_of_recordings_too(exported: Bundle, tmp_path: Path) -> None:
    copy = copy_of(exported, tmp_path)
    seen = [example_inputs(copy.config, Shape(3, 20), seed) for seed in (5, 6)]
    export_onnx(copy, 'int8', kinds=('plain',), observed=seen)
    said = json.loads((copy.folder / 'onnx' / 'parity.json').read_text())['precisions']['int8']['observed']
    assert said['count'] == 2
    assert set(said['worst']) == {'vision', 'prefix', 'plain', 'chunk'}
    assert 0.99 < said['worst']['chunk']['cosine'] < 1.0
    ready = find_export(copy.folder, copy.digest, 'fp32')
    with pytest.raises(VlaError, match=r'observation 1 of the recordings: fp32 graph vision differs from torch'):
        _on_observations(ready, of_noise(copy.config, seed=1), seen, 'cpu', lambda line: None)


def test_every_norm_is_written_as_tensorrts_provider_looks_for_it(exported: Bundle) -> None:
    """Its option keeps a Pow that a reduction follows in float32; a norm written otherwise would overflow float16."""
    graph = onnx.load(exported.folder / 'onnx' / 'fp32' / 'prefix.onnx', load_external_data=False).graph
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    means = [node for node in graph.node if node.op_type == 'ReduceMean']
    assert len(means) == 2 * exported.config.backbone.depth - 1  # of the last layer only keys and values are wanted
    assert {made_by[node.input[0]] for node in means} == {'Pow'}
