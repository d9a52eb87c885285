"""`ki sim` and `ki eval sim`: each writes what it says, and a wrong word ends in one sentence."""

from __future__ import annotations

import json

import cv2
import pytest
from PIL import Image
from typer.testing import CliRunner

import ki.commands.eval
import ki.commands.sim
from ki_common.errors import KiError
from ki_sim.record.record import load


def run(*words: str) -> str:
    result = CliRunner().invoke(ki.commands.sim.app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_record_writes_episodes_and_says_how_many(tmp_path):
    order = ('record', '--out', tmp_path, '--task', 'demo', '--episodes', 1, '--format', 'npz', '--image-size', 16)
    assert '1 written' in run(*order, '--workers', 1)
    assert load(tmp_path / 'demo-000000.npz')['meta']['success']
    assert '0 written' in run(*order, '--workers', 1)


def test_expert_writes_a_table_and_keeps_the_rows_of_other_tasks(tmp_path):
    out = tmp_path / 'expert.json'
    out.write_text(json.dumps({'stack': {'k': 1}}))
    assert '1/1' in run('expert', '--out', out, '--task', 'demo', '--seeds', 1, '--workers', 1)
    table = json.loads(out.read_text())
    assert table['demo']['success']['n'] == 1
    assert table['demo']['failed_seeds'] == []
    assert table['stack'] == {'k': 1}


def test_vqa_writes_lines_and_images(tmp_path):
    assert 'lines about 1 scenes' in run(
        'vqa', '--out', tmp_path, '--scenes', 1, '--workers', 1, '--image-size', 32, '--split', 'heldout'
    )
    assert (tmp_path / 'heldout.jsonl').read_text()


def test_picture_and_film_can_be_looked_at(tmp_path):
    run('picture', tmp_path / 'a.png', '--camera', 'left_wrist', '--width', 64, '--height', 48)
    assert cv2.imread(str(tmp_path / 'a.png')).shape == (48, 64, 3)
    run('film', tmp_path / 'a.gif', '--task', 'demo', '--seed', 1, '--every', 40)
    assert Image.open(tmp_path / 'a.gif').n_frames >= 3


@pytest.mark.parametrize(
    ('words', 'said'),
    [
        (('record', '--out', 'x', '--task', 'mop'), "task 'mop' is not known"),
        (('expert', '--task', 'mop', '--seeds', '1'), "task 'mop' is not known"),
        (('vqa', '--out', 'x', '--split', 'test'), "split 'test' is not known"),
        (('picture', 'a.png', '--camera', 'nose'), "there is no camera 'nose'"),
        (('picture', '/nowhere/a.png', '--width', '16', '--height', '16'), 'cannot be written'),
        (('picture', 'a.foo'), r"a.foo ends in '.foo': give a name that ends in .png or .jpg"),
        (('picture', 'a'), r"a ends in '': give a name that ends in .png"),
        (('film', 'a.mp4'), r"a.mp4 ends in '.mp4': give a name that ends in .gif"),
        (('expert', '--out', 'notes.txt'), r'notes.txt cannot be read as JSON \(Expecting value.*give another file'),
        (('expert', '--out', 'list.json'), r'list.json holds a list and no table .*give another file'),
        (('expert', '--out', '.'), r'\. cannot be read as JSON'),
        (('record', '--out', 'x', '--task', 'demo', '--image-size', '0'), 'image size 0x0 cannot be drawn'),
        (('vqa', '--out', 'x', '--image-size', '0'), 'image size 0x0 cannot be drawn'),
    ],
)
def test_wrong_words_end_in_a_sentence(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'notes.txt').write_text('call mother\n')
    (tmp_path / 'list.json').write_text('[]\n')
    with pytest.raises(KiError, match=said):
        CliRunner().invoke(ki.commands.sim.app, list(words), catch_exceptions=False)


@pytest.mark.parametrize(
    'words',
    [
        ('film', 'a.gif', '--every', '0'),
        ('expert', '--seeds', '0'),
        ('record', '--out', 'x', '--task', 'demo', '--quality', '200'),
        ('record', '--out', 'x', '--task', 'demo', '--quality', '0'),
    ],
)
def test_numbers_out_of_range_are_wrong_usage(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(ki.commands.sim.app, list(words))
    assert result.exit_code == 2
    assert next(word for word in words[1:] if word in ('--every', '--seeds', '--quality')) in result.output
    assert list(tmp_path.iterdir()) == []


def test_recording_goes_on_with_the_same_pictures_only(tmp_path):
    order = ('record', '--out', tmp_path, '--task', 'demo', '--episodes', 1, '--format', 'npz', '--workers', 1)
    run(*order, '--image-size', 16)
    with pytest.raises(KiError, match='images of 16x16, and 32x32 is asked for: give --image-size 16'):
        run(*order, '--image-size', 32)


def test_evaluation_is_a_command_of_its_own():
    result = CliRunner().invoke(ki.commands.eval.app, ['sim', '--help'])
    assert result.exit_code == 0
    assert '--paired' in result.output
