"""The wire carries what openpi's clients carry, and refuses what could harm."""

import pickle

import msgpack
import numpy as np
import pytest

from ki_vla.errors import VlaError
from ki_vla.remote.wire import jpeg, pack, unpack


def test_arrays_numbers_and_text_survive_in_openpis_form():
    sent = {
        'image': np.arange(24, dtype=np.uint8).reshape(2, 4, 3), 'state': np.linspace(0, 1, 3), 'n': np.float32(0.5),
        'prompt': 'gö', 'words': np.array('pick'), 'nested': {'list': [1, None, True]},
    }  # fmt: skip
    back = unpack(pack(sent))
    for name in ('image', 'state', 'words'):
        np.testing.assert_array_equal(back[name], sent[name])
        assert back[name].dtype == sent[name].dtype
    assert (back['n'], back['prompt'], back['nested']) == (0.5, 'gö', sent['nested'])
    raw = msgpack.unpackb(pack({'state': sent['state']}))['state']
    assert raw == {b'__ndarray__': True, b'data': sent['state'].tobytes(), b'dtype': '<f8', b'shape': [3]}


def test_a_picture_as_jpeg_is_nearly_the_picture():
    picture = np.full((32, 40, 3), (200, 100, 50), dtype=np.uint8)
    back = unpack(pack({'head': jpeg(picture, 95)}))['head']
    assert back.shape == picture.shape
    assert np.abs(back.astype(int) - picture).max() < 8


def array(dtype: object = '<f8', shape: object = (2,), data: object = bytes(16)) -> bytes:
    return msgpack.packb({'a': {b'__ndarray__': True, b'data': data, b'dtype': dtype, b'shape': shape}})


@pytest.mark.parametrize(
    ('data', 'why'),
    [
        (array(dtype='|O'), 'has the dtype object; numbers and text are read'),
        (array(dtype='|V8'), 'numbers and text are read'),
        (array(dtype='nonsense'), 'no dtype that is known'),
        (array(dtype=3), 'no dtype that is known|another number|numbers and text'),
        (array(shape=(3,)), 'has 16 bytes'),
        (array(shape=(-2,)), 'no data or no shape'),
        (array(shape=(2**40, 2**40)), 'has 16 bytes'),
        (array(data='text'), 'no data or no shape'),
        (msgpack.packb({'a': {b'__jpeg__': True, b'data': b'no picture'}}), 'no JPEG'),
        (msgpack.packb({'a': {b'__jpeg__': True, b'data': b''}}), 'no JPEG'),
        (pickle.dumps({'state': [1]}), 'not a message of the policy protocol'),
        (b'', 'not a message'),
        (b'\x81\xa1', 'not a message'),
        (b'\x91' * 5000, 'not a message'),
    ],
)
def test_what_is_no_message_is_refused_in_one_sentence(data, why):
    with pytest.raises(VlaError, match=why):
        unpack(data)


def test_objects_are_not_sent():
    for value in (object(), np.array([object()]), {1, 2}):
        with pytest.raises(VlaError, match='cannot be sent'):
            pack({'a': value})
