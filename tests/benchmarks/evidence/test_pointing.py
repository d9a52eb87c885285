"""What is said of a policy's pointer: how far off it is, and whether it means another thing."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ki_sim.moments.maker import ShownObject, SimMoment
from ki_vla.policy.bundle import load_bundle
from ki_vla.policy.processor import Processor

ROOT = Path(__file__).resolve().parents[3]
POINTING: dict[str, Any] = runpy.run_path(str(ROOT / 'benchmarks/evidence/pointing.py'))


@pytest.fixture(scope='module')
def processor() -> Processor:
    return load_bundle(ROOT / 'bundles/demo').processor


def moment(processor: Processor, points: Any) -> SimMoment:
    """A cup and a ball in the view, a tenth of it apart from its middle."""
    left, top, width, height = processor.contract.cameras[0].crop or (0.0, 0.0, 1.0, 1.0)
    cup = ShownObject('red', 'cup', left + 0.4 * width, top + 0.5 * height)
    ball = ShownObject('red', 'ball', left + 0.6 * width, top + 0.5 * height)
    image = np.zeros((200, 200, 3), np.uint8)
    images = {processor.contract.cameras[0].name: image}
    return SimMoment('stack', 'do', '', images, np.zeros(10), np.zeros((1, 10)), (cup, ball), points, 0)


def test_a_place_is_off_by_its_distance_and_wrong_where_another_thing_is_nearer(processor: Processor) -> None:
    shown = moment(processor, (None, None))
    of_cup = replace(shown, points=((shown.things[0].x, shown.things[0].y), None))
    [(name, off, mistaken)] = POINTING['judged'](processor, of_cup, np.array([[0.45, 0.5], [0.0, 0.0]]))
    assert (name, mistaken) == ('acted on', False)
    assert off == pytest.approx(0.05, abs=0.01)
    [(_, off, mistaken)] = POINTING['judged'](processor, of_cup, np.array([[0.58, 0.5], [0.0, 0.0]]))
    assert mistaken
    assert off == pytest.approx(0.18, abs=0.01)
    alone = replace(of_cup, things=())
    assert POINTING['judged'](processor, alone, np.zeros((2, 2)))[0][2] is None


@pytest.mark.slow  # the quick one holds the arithmetic; this one that everything it imports is there
def test_the_shipped_policy_points_at_things_that_lie_free(tmp_path: Path) -> None:
    out = tmp_path / 'pointing.json'
    assert POINTING['main']([str(ROOT / 'bundles/demo'), '--scenes', '1', '--out', str(out)]) == 0
    found = json.loads(out.read_text())['places']['touch, acted on, free']
    assert found['moments'] > 5
    assert found['off, p50 and p90, of the view'][0] < 0.1
