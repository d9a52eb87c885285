"""Streaming: the format, damaged files, and memory that stays that of one piece."""

import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ki_vla.errors import VlaError
from ki_vla.importers import stream
from ki_vla.importers.stream import open_checkpoint, write_tensors


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(st.lists(st.integers(0, 7), max_size=3).map(tuple), min_size=1, max_size=5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    piece=st.sampled_from([8, 64, 10**6]),
)
def test_files_agree_with_the_safetensors_library_both_ways(tmp_path_factory, shapes, dtype, piece):
    folder = tmp_path_factory.mktemp('stream')
    tensors = {f't{i}': torch.randn(shape).to(dtype) for i, shape in enumerate(shapes)}
    save_file(tensors, folder / 'theirs.safetensors')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream, 'PIECE_BYTES', piece)
        checkpoint = open_checkpoint(folder / 'theirs.safetensors')
        shapes_by_name = {name: tuple(value.shape) for name, value in tensors.items()}
        write_tensors(folder / 'ours.safetensors', shapes_by_name, dtype, checkpoint.pieces, {'note': 'x'})
    again = load_file(folder / 'ours.safetensors')
    assert all(torch.equal(again[name], value) for name, value in tensors.items())


def test_a_file_cut_short_is_refused_by_the_tensor_that_is_missing(tmp_path):
    save_file({'a': torch.zeros(100), 'b': torch.zeros(100)}, tmp_path / 'x.safetensors')
    data = (tmp_path / 'x.safetensors').read_bytes()
    (tmp_path / 'x.safetensors').write_bytes(data[:-10])
    with pytest.raises(VlaError, match='truncated, b ends'):
        open_checkpoint(tmp_path / 'x.safetensors')


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=80))
def test_garbage_is_refused_with_a_sentence(tmp_path_factory, data):
    path = tmp_path_factory.mktemp('garbage') / 'x.safetensors'
    path.write_bytes(data)
    with pytest.raises(VlaError, match=r'x\.safetensors'):
        open_checkpoint(path)


@pytest.mark.parametrize(
    'entry',
    [
        {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 4]},
        {'dtype': 'I64', 'shape': [1], 'data_offsets': [0, 8]},
        {'dtype': 'F32', 'shape': [-1], 'data_offsets': [0, -4]},
        {'dtype': 'F32', 'shape': [2]},
        [],
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, entry):
    header = json.dumps({'a': entry}).encode()
    (tmp_path / 'x.safetensors').write_bytes(len(header).to_bytes(8, 'little') + header + bytes(8))
    with pytest.raises(VlaError):
        open_checkpoint(tmp_path / 'x.safetensors')


def test_an_empty_folder_says_what_was_looked_for(tmp_path):
    with pytest.raises(VlaError, match=r'no model\.safetensors'):
        open_checkpoint(tmp_path)


def test_a_tensor_that_gives_too_little_leaves_no_file(tmp_path):
    with pytest.raises(VlaError, match='gave 3 numbers'):
        write_tensors(tmp_path / 'x.safetensors', {'a': (4,)}, torch.float32, lambda name: [torch.zeros(3)])
    assert not list(tmp_path.iterdir())


MEMORY = """
import resource, sys, torch
from ki_vla.model.config import preset
from ki_vla.importers import stream
from ki_vla.importers.openpi import import_openpi
stream.PIECE_BYTES = 2**20
config = preset('tiny', vocab_size=300_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import_openpi(sys.argv[1], sys.argv[2], config=config, dtype=torch.bfloat16)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != 'linux', reason='ru_maxrss is in kilobytes on Linux only')
def test_importing_a_file_takes_the_memory_of_a_piece_not_of_the_file(tables, tmp_path):
    from ki_vla.model.config import preset

    config = preset('tiny', vocab_size=300_000)
    table = tables[0](config, True)
    save_file({name: torch.zeros(shape) for name, shape in table.items()}, tmp_path / 'in.safetensors')
    size = (tmp_path / 'in.safetensors').stat().st_size
    assert size > 100 * 2**20
    command = [sys.executable, '-c', MEMORY, str(tmp_path / 'in.safetensors'), str(tmp_path / 'out.safetensors')]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    grown = int(result.stdout.split()[-1]) * 1024
    assert grown < size / 5, f'{grown / 2**20:.1f} MiB more for a file of {size / 2**20:.1f} MiB'
