"""Pictures with words are read from lines and shards; what is broken is counted and stepped over."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from training.errors import TrainingError
from training.samples.vlm_data import CAPTION, VlmDataset


def picture(value: int) -> bytes:
    return cv2.imencode('.png', np.full((8, 10, 3), value, np.uint8))[1].tobytes()


def write_lines(folder: Path, lines: list[Any], name: str = 'data.jsonl') -> Path:
    folder.mkdir(exist_ok=True)
    text = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / name).write_text('\n'.join(text) + '\n')
    return folder / name


def write_shard(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, 'w') as shard:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return path


def test_questions_captions_and_several_pictures(tmp_path: Path) -> None:
    for value in (1, 2):
        (tmp_path / f'{value}.png').write_bytes(picture(value))
    file = write_lines(
        tmp_path,
        [
            {'image': '1.png', 'prompt': 'what colour?', 'answer': 'dark'},
            {'image': ['1.png', '2.png'], 'answer': 'two dark pictures'},
            {'image': '2.png', 'question': 'detect cup', 'answer': '<loc0001><loc0002>', 'kind': 'box'},
        ],
    )
    data = VlmDataset([file])
    assert data.kinds == {'vqa': 1, 'caption': 1, 'box': 1}
    assert [sample.question for sample in (data[0], data[1])] == ['what colour?', CAPTION]
    assert len(data[1].images) == 2
    np.testing.assert_array_equal(data[1].images[1], 2)
    assert len(data.only(['box'])) == 1
    with pytest.raises(TrainingError, match='no usable sample of kind smell'):
        data.only(['smell'])


def test_bad_lines_are_counted_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / 'ok.png').write_bytes(picture(3))
    file = write_lines(
        tmp_path,
        [
            {'image': 'ok.png', 'answer': 'fine'},
            '{"image": "ok.png", "answer"',
            {'image': 'ok.png'},
            {'image': 'gone.png', 'answer': 'x'},
            {'image': '../ok.png', 'answer': 'x'},
            {'image': 'ok.png', 'answer': ''},
            '[1, 2]',
            '',
            {'image': 7, 'answer': 'x'},
        ],
    )
    data = VlmDataset([file])
    assert len(data) == 1
    counted = {problem.kind: problem for problem in data.problems}
    assert counted['bad_line'].count == 6
    assert 'line 2' in counted['bad_line'].text
    assert 'gone.png' in counted['missing_image'].text


def test_what_a_model_cannot_take_is_left_out_and_named_by_file_and_line(tmp_path: Path) -> None:
    (tmp_path / 'ok.png').write_bytes(picture(3))
    file = write_lines(tmp_path, [{'image': 'ok.png', 'answer': answer} for answer in ('a', 'long', 'b', 'longer')])
    data = VlmDataset([file])
    data.drop(lambda question, answer, pictures: 'too long' if 'long' in answer else '')
    assert [data[number].answer for number in range(len(data))] == ['a', 'b']
    [problem] = data.problems
    assert (problem.kind, problem.count) == ('does_not_fit', 2)
    assert problem.text == f'{file}: line 2 does not fit the model: too long'
    with pytest.raises(TrainingError, match=r'no usable sample that fits the model in .*data\.jsonl'):
        data.drop(lambda *given: 'nothing fits')


def test_a_picture_that_does_not_decode_is_stepped_over(tmp_path: Path) -> None:
    (tmp_path / 'bad.png').write_bytes(picture(3)[:40])
    (tmp_path / 'ok.png').write_bytes(picture(3))
    file = write_lines(tmp_path, [{'image': name, 'answer': name} for name in ('bad.png', 'ok.png')])
    data = VlmDataset([file])
    assert data[0].answer == 'ok.png'
    assert [problem.kind for problem in data.problems] == ['undecodable']
    (tmp_path / 'ok.png').write_bytes(b'')
    with pytest.raises(TrainingError, match='do not decode'):
        data[0]


def test_shards_are_read_without_unpacking(tmp_path: Path) -> None:
    about = json.dumps({'question': 'what is it?', 'answer': 'a cup', 'kind': 'vqa'}).encode()
    path = write_shard(
        tmp_path / 'a.tar',
        [
            ('x/0001.png', picture(5)),
            ('x/0001.json', about),
            ('x/0002.jpg', cv2.imencode('.jpg', np.full((8, 8, 3), 9, np.uint8))[1].tobytes()),
            ('x/0002.txt', b'a grey square'),
            ('x/0003.json', about),
            ('x/0004.png', picture(5)),
        ],
    )
    data = VlmDataset([path])
    assert [(data[i].question, data[i].answer) for i in range(2)] == [
        ('what is it?', 'a cup'),
        (CAPTION, 'a grey square'),
    ]
    np.testing.assert_array_equal(data[0].images[0], 5)
    [bad] = data.problems
    assert (bad.kind, bad.count) == ('bad_sample', 2)


def test_a_cut_shard_gives_what_is_whole(tmp_path: Path) -> None:
    members = []
    for number in range(6):
        members += [(f'{number}.txt', b'words'), (f'{number}.png', picture(number))]
    path = write_shard(tmp_path / 'a.tar', members)
    path.write_bytes(path.read_bytes()[:5000])
    data = VlmDataset([path])
    assert 1 <= len(data) < 6
    assert 'damaged' in {problem.kind for problem in data.problems} or len(data) < 6
    assert all(data[position].answer == 'words' for position in range(len(data)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400))
def test_any_bytes_are_lines_or_problems(tmp_path: Path, content: bytes) -> None:
    (tmp_path / 'ok.png').write_bytes(picture(1))
    (tmp_path / 'x.jsonl').write_bytes(json.dumps({'image': 'ok.png', 'answer': 'a'}).encode() + b'\n' + content)
    assert len(VlmDataset([tmp_path / 'x.jsonl'])) >= 1


def test_nothing_usable_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match='does not exist'):
        VlmDataset([tmp_path / 'none'])
    with pytest.raises(TrainingError, match='holds neither'):
        VlmDataset([tmp_path])
    with pytest.raises(TrainingError, match='line 1 cannot be used'):
        VlmDataset([write_lines(tmp_path, ['nonsense'])])
