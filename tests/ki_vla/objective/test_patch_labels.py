"""Labels of patches say what a picture shows at the model's size, wherever the picture was cut."""

from __future__ import annotations

import numpy as np
import pytest

from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.model.config import DenseConfig, preset
from ki_vla.objective.patch_labels import BESIDE, NOTHING, UNKNOWN, Thing, patch_labels
from ki_vla.policy.processor import Processor
from ki_vla.policy.untrained import untrained_processor

CONFIG = preset('tiny').replace(dense=DenseConfig(labels={'colour': ('red', 'blue'), 'kind': ('cup', 'ball')}))
SIDE = CONFIG.vision.image_size // CONFIG.vision.patch_size


def cropping(crop: tuple[float, float, float, float]) -> Processor:
    contract = load_contract('arm_single')
    first, *rest = contract.cameras
    return untrained_processor(contract.replace(cameras=(first.replace(crop=crop), *rest)))


def test_a_thing_names_the_patch_that_holds_its_middle() -> None:
    found = patch_labels(CONFIG, 2, [Thing(0.9, 0.1, {'colour': 'blue', 'kind': 'cup'})], (None, (0.9, 0.1)))
    patch = SIDE - 1
    assert found['dense_VNK'][0, patch].tolist() == [2, 1]
    assert (np.delete(found['dense_VNK'][0], patch, axis=0) == NOTHING).all()
    assert (found['dense_VNK'][1] == UNKNOWN).all(), 'nobody has looked at the second view'
    column, row = 0.9 * SIDE - (SIDE - 1) - 0.5, 0.1 * SIDE - 0.5
    np.testing.assert_allclose(found['offset_VN2'][0, patch], [column, row], rtol=1e-5)
    assert np.isnan(found['offset_VN2']).sum() == found['offset_VN2'].size - 2
    np.testing.assert_allclose(found['points_M2'], [[np.nan, np.nan], [0.9, 0.1]], rtol=1e-6)


def test_of_two_in_one_patch_the_later_names_it_and_one_outside_names_none() -> None:
    things = [
        Thing(0.1, 0.1, {'colour': 'red', 'kind': 'cup'}),
        Thing(0.12, 0.1, {'colour': 'blue'}),
        Thing(1.2, 0.1, {'colour': 'red', 'kind': 'cup'}),
    ]
    found = patch_labels(CONFIG, 1, things, ((1.2, 0.1), None))
    assert found['dense_VNK'][0, 0].tolist() == [2, UNKNOWN]
    assert (found['dense_VNK'][0, 1:] == NOTHING).all()


def test_a_thing_that_is_asked_for_and_has_left_the_view_stands_beside_it() -> None:
    found = patch_labels(CONFIG, 1, None, ((1.2, 0.1), (-3.0, 0.4)))
    np.testing.assert_allclose(found['points_M2'], [[1.2, 0.1], [-BESIDE, 0.4]], rtol=1e-6)
    assert np.isnan(patch_labels(CONFIG, 1, None, (None, (0.5, 0.5)))['points_M2'][0]).all()


def test_where_nobody_looked_everything_is_unknown_and_a_strange_word_is_refused() -> None:
    assert (patch_labels(CONFIG, 1, None)['dense_VNK'] == UNKNOWN).all()
    with pytest.raises(VlaError, match=r"colour 'green' of a thing is none of model\.dense\.labels\.colour: red, blue"):
        patch_labels(CONFIG, 1, [Thing(0.1, 0.1, {'colour': 'green'})], None)


def test_a_point_of_the_whole_picture_is_where_its_pixel_is_in_the_cropped_view() -> None:
    processor = cropping((0.25, 0.5, 0.5, 0.25))
    camera = processor.contract.cameras[0]
    image = np.zeros((480, 640, 3), dtype=np.uint8)
    image[300:340, 400:440] = 255
    view = processor.view(camera, image)
    rows, columns = np.nonzero(view[..., 0] > 128)
    x, y = processor.in_view(camera, 480, 640, 420 / 640, 320 / 480)
    size = len(view)
    assert x == pytest.approx((columns.mean() + 0.5) / size, abs=0.6 / size)
    assert y == pytest.approx((rows.mean() + 0.5) / size, abs=0.6 / size)
    assert processor.in_view(camera, 480, 640, 0.0, 0.6)[0] < 0.0
    shown, _ = processor.views(dict.fromkeys(processor.contract.camera_names, image))
    assert np.array_equal(shown[0], view)
    assert not np.array_equal(shown[1], view), 'a camera without a crop shows the whole picture'
