"""Bundles: written whole, checked to the last byte, refused by name."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_common import files
from ki_common.files import sha256_of
from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.model.initial_weights import initialise
from ki_vla.model.kivla import KiVla
from ki_vla.policy import bundle as bundle_module
from ki_vla.policy.bundle import Bundle, load_bundle, write_bundle
from ki_vla.policy.untrained import untrained_processor, write_untrained

CONTRACT = load_contract('arm_single').replace(horizon=12)
FILES = ['config.json', 'contract.yaml', 'fast.json', 'model.safetensors', 'stats.json', 'tokenizer/tokenizer.json',
         'tokenizer/vocabulary.json']  # fmt: skip


@pytest.fixture(scope='module')
def written(tmp_path_factory) -> Bundle:
    return write_untrained(tmp_path_factory.mktemp('bundles') / 'arm', CONTRACT)


@pytest.fixture
def copy(written, tmp_path):
    shutil.copytree(written.folder, tmp_path / 'arm')
    return tmp_path / 'arm'


def test_what_is_written_is_read_back(written):
    again = load_bundle(written.folder)
    assert again.policy_id == written.policy_id
    assert again.policy_id.startswith('untrained@')
    assert again.config == written.config
    assert again.contract.hash == CONTRACT.hash
    actions = np.tile(written.processor.action_stats.mean, (12, 1))
    state = written.processor.state_stats.mean
    for one, other in zip(
        again.processor.targets(actions, state).sample().values(),
        written.processor.targets(actions, state).sample().values(),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    files = sorted(p.relative_to(written.folder).as_posix() for p in written.folder.rglob('*') if p.is_file())
    assert files == sorted([*FILES, 'manifest.json'])


def test_model_has_exactly_the_weights_that_were_written(written):
    expected = initialise(KiVla(written.config), torch.Generator().manual_seed(0)).state_dict()
    model = written.model()
    assert not model.training
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert {p.dtype for p in written.model(dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_no_pickle_and_no_code_is_in_a_bundle(written):
    assert {p.suffix for p in written.folder.rglob('*') if p.is_file()} == {'.json', '.yaml', '.safetensors'}


@pytest.mark.parametrize('name', FILES)
def test_a_changed_file_is_refused_by_name(copy, name):
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(VlaError, match=f'{name}: sha256'):
        load_bundle(copy)


@pytest.mark.parametrize('name', FILES)
def test_a_file_cut_short_or_missing_is_refused_by_name(copy, name):
    data = (copy / name).read_bytes()
    (copy / name).write_bytes(data[:-1])
    with pytest.raises(VlaError, match=f'{name}: has .* the manifest says'):
        load_bundle(copy, verify=False)
    (copy / name).unlink()
    with pytest.raises(VlaError, match=f'{name} is missing'):
        load_bundle(copy)


def edit_manifest(folder, change):
    manifest = json.loads((folder / 'manifest.json').read_text())
    change(manifest)
    (folder / 'manifest.json').write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda m: m.update(format=2), 'format 2'),
        (lambda m: m.pop('name'), r"manifest\.json has no field 'name'; add it as a word"),
        (lambda m: m['files'].pop('stats.json'), r'does not list stats\.json'),
        (lambda m: m['files'].update({'../../etc/passwd': {'bytes': 1, 'sha256': 64 * '0'}}), 'no bundle has'),
        (lambda m: m['files'].update({'config.json': 3}), r"files\.'config\.json' is 3; write a mapping of fields"),
    ],
)
def test_a_manifest_that_does_not_hold_is_refused(copy, change, message):
    edit_manifest(copy, change)
    with pytest.raises(VlaError, match=message):
        load_bundle(copy)


def test_a_folder_without_manifest_is_no_bundle(tmp_path):
    with pytest.raises(VlaError, match=r'no manifest\.json'):
        load_bundle(tmp_path)


@settings(max_examples=40, deadline=None)
@given(text=st.text(max_size=60))
def test_a_manifest_of_anything_is_refused_with_a_sentence(tmp_path_factory, text):
    folder = tmp_path_factory.mktemp('any')
    (folder / 'manifest.json').write_text(text, encoding='utf-8', errors='ignore')
    with pytest.raises(VlaError):
        load_bundle(folder)


def rewrite(folder, name, change):
    """Change a JSON file and make the manifest agree, so that the content itself is what gets refused."""
    data = json.loads((folder / name).read_text())
    change(data)
    (folder / name).write_text(json.dumps(data))
    entry = {'bytes': (folder / name).stat().st_size, 'sha256': sha256_of(folder / name)}
    edit_manifest(folder, lambda m: m['files'].update({name: entry}))


@pytest.mark.parametrize(
    ('name', 'change', 'message'),
    [
        ('config.json', lambda d: d.pop('processing'), "config.json has no field 'processing'; add it as a mapping"),
        ('config.json', lambda d: d['processing'].pop('pad_steps'), 'processing has no field pad_steps; a policy says'),
        ('config.json', lambda d: d.update(colour=3), "config.json has the unknown field 'colour'"),
        ('config.json', lambda d: d['model'].update(depth=3), 'depth'),
        ('config.json', lambda d: d['model'].update(horizon=13), 'horizon'),
        ('config.json', lambda d: d['model']['backbone'].update(mlp=256), 'do not fit the configuration'),
        ('config.json', lambda d: d['model']['vision'].update(depth=10**9), 'at most 1000'),
        ('config.json', lambda d: d['model'].update(vocab_size=2**70), 'vocab_size'),
        ('config.json', lambda d: d['model']['vision'].update(mlp=2**70), 'cannot be built'),
        ('stats.json', lambda d: d.pop('state'), 'state and actions are needed'),
        ('stats.json', lambda d: d['actions']['names'].reverse(), 'another order'),
        ('fast.json', lambda d: d.update(columns=9), 'codec.columns'),
        ('tokenizer/vocabulary.json', lambda d: d.update(size=4096), 'model.vocab_size'),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused_by_field(copy, name, change, message):
    rewrite(copy, name, change)
    with pytest.raises(VlaError, match=message):
        load_bundle(copy)


def leaves(data, path=()):
    """Every place in a JSON document, as a path of keys."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from leaves(value, (*path, key))


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=5), st.just([]), st.just({})
)


@pytest.mark.parametrize(
    'name', ['config.json', 'stats.json', 'fast.json', 'tokenizer/vocabulary.json', 'manifest.json']
)
def test_any_value_in_any_field_loads_or_is_refused_with_a_sentence(copy, name):
    original = (copy / name).read_bytes()
    manifest = (copy / 'manifest.json').read_bytes()
    places = [path for path in leaves(json.loads(original)) if 'tokenizer' not in path[:1]]

    @settings(max_examples=40, deadline=None)
    @given(data=st.data())
    def check(data):
        path, value = data.draw(st.sampled_from(places)), data.draw(SCALARS)

        def change(document):
            for key in path[:-1]:
                document = document[key]
            document[path[-1]] = value

        try:
            with contextlib.suppress(VlaError):  # any other kind of error fails the test
                if name == 'manifest.json':
                    edit_manifest(copy, change)
                else:
                    rewrite(copy, name, change)
                load_bundle(copy)
        finally:
            (copy / name).write_bytes(original)
            (copy / 'manifest.json').write_bytes(manifest)

    check()


def test_robots_that_do_not_fit_are_refused_field_by_field(written):
    written.check(CONTRACT)
    other_topics = tuple(camera.replace(topic='elsewhere/' + camera.topic) for camera in CONTRACT.cameras)
    written.check(CONTRACT.replace(cameras=other_topics))
    with pytest.raises(VlaError) as caught:
        written.check(CONTRACT.replace(rate_hz=30.0, horizon=50, cameras=CONTRACT.cameras[::-1]))
    for field in ('rate_hz', 'horizon', 'cameras'):
        assert field in str(caught.value)
    with pytest.raises(VlaError, match='actions'):
        written.check(load_contract('bimanual_static'))


def test_same_content_same_identity_other_weights_other_identity(tmp_path):
    one, two, three = (write_untrained(tmp_path / str(i), CONTRACT, seed=seed) for i, seed in enumerate((1, 1, 2)))
    assert one.policy_id == two.policy_id
    assert one.policy_id != three.policy_id


def test_exports_do_not_change_the_identity(copy):
    before = load_bundle(copy).policy_id
    (copy / 'onnx').mkdir()
    (copy / 'onnx' / 'vision.onnx').write_bytes(b'x')
    assert load_bundle(copy).policy_id == before


def test_an_existing_folder_is_kept_unless_overwriting_is_asked_for(copy):
    before = load_bundle(copy).policy_id
    with pytest.raises(VlaError, match='exists'):
        write_untrained(copy, CONTRACT, seed=5)
    assert load_bundle(copy).policy_id == before
    assert write_untrained(copy, CONTRACT, seed=5, overwrite=True).policy_id != before
    assert [path.name for path in copy.parent.iterdir()] == ['arm']


@pytest.mark.parametrize('step', ['_write_weights', 'write_parts', '_write_json', '_sync_tree', '_put_in_place'])
def test_an_interrupted_write_leaves_the_old_bundle_and_nothing_else(copy, monkeypatch, step):
    before = load_bundle(copy).policy_id

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module if hasattr(bundle_module, step) else files, step, stop)
    with pytest.raises(KeyboardInterrupt):
        write_untrained(copy, CONTRACT, seed=5, overwrite=True)
    monkeypatch.undo()
    assert load_bundle(copy).policy_id == before
    assert [path.name for path in copy.parent.iterdir()] == ['arm']


@pytest.mark.parametrize('exchange', [True, False])
def test_overwriting_works_with_and_without_an_atomic_exchange(copy, monkeypatch, exchange):
    swap = files._exchange
    monkeypatch.setattr(files, '_exchange', lambda one, other: exchange and swap(one, other))
    before = load_bundle(copy).policy_id
    after = write_untrained(copy, CONTRACT, seed=5, overwrite=True).policy_id
    assert load_bundle(copy).policy_id == after != before
    assert [path.name for path in copy.parent.iterdir()] == ['arm']


def test_a_killed_writer_leaves_the_old_bundle_and_the_next_one_tidies_up(copy):
    before = load_bundle(copy).policy_id
    killed = subprocess.run([sys.executable, '-c', KILLED, str(copy)], capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    assert load_bundle(copy).policy_id == before
    assert len(list(copy.parent.iterdir())) == 2
    write_untrained(copy, CONTRACT, seed=5, overwrite=True)
    assert [path.name for path in copy.parent.iterdir()] == ['arm']


KILLED = """
import os, signal, sys
from ki_robot.contract.contract import load_contract
from ki_common import files
from ki_vla.policy.untrained import write_untrained
files._sync_tree = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
write_untrained(sys.argv[1], load_contract('arm_single').replace(horizon=12), seed=5, overwrite=True)
"""


def test_weights_come_from_a_file_too_and_must_fit(written, tmp_path):
    again = write_bundle(
        tmp_path / 'again',
        name='untrained',
        weights=written.weights,
        processor=written.processor,
        recipe={'name': 'ours'},
    )
    assert again.recipe == {'name': 'ours'}
    assert (again.folder / 'model.safetensors').read_bytes() == written.weights.read_bytes()
    state = written.model().state_dict()
    state['extra'] = state.pop('embed.weight')
    with pytest.raises(VlaError, match=r'missing: embed\.weight; unexpected: extra'):
        write_bundle(tmp_path / 'bad', name='bad', weights=state, processor=written.processor)
    assert not (tmp_path / 'bad').exists()


def test_weights_can_be_written_in_bfloat16(written, tmp_path):
    small = write_bundle(
        tmp_path / 'bf16', name='small', weights=written.model(), processor=written.processor, dtype=torch.bfloat16
    )
    assert small.weights.stat().st_size < 0.55 * written.weights.stat().st_size
    assert {p.dtype for p in small.model().parameters()} == {torch.bfloat16}


def test_a_policy_without_action_tokens_has_no_codec_file(written, tmp_path):
    processor = replace(written.processor, codec=None)
    plain = write_bundle(tmp_path / 'plain', name='plain', weights=written.weights, processor=processor)
    assert not (plain.folder / 'fast.json').exists()
    assert load_bundle(plain.folder).processor.codec is None


@pytest.mark.parametrize('name', ['', 'a@b', 'a/b', 'a b'])
def test_names_that_would_break_the_policy_id_are_refused(written, tmp_path, name):
    with pytest.raises(VlaError, match='bundle name'):
        write_bundle(tmp_path / 'x', name=name, weights=written.weights, processor=written.processor)


def test_the_untrained_policy_says_that_it_is(written):
    assert written.name == 'untrained'
    assert 'random weights' in written.provenance['note']
    assert untrained_processor(CONTRACT).action_stats.provenance == {'note': 'from limits, not from data'}
