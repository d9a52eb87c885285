"""A policy that is told the true places hears them as its own pointer would say them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from ki_vla.model.pointer import PlacePointer

ROOT = Path(__file__).resolve().parents[3]
TOLD_PLACES: dict[str, Any] = runpy.run_path(str(ROOT / 'benchmarks/evidence/told_places.py'))


def test_told_places_are_heard_and_what_is_not_told_stays() -> None:
    torch.manual_seed(0)
    pointer = PlacePointer(16, cells=12)
    own = pointer(torch.randn(1, 16)).detach()
    said = TOLD_PLACES['told'](own, 12, {1: (0.3, 0.95)})
    assert pointer.heard(said)[0, 1].tolist() == pytest.approx([0.3, 0.95])
    assert torch.equal(pointer.heard(said)[0, 0], pointer.heard(own)[0, 0])
    columns, rows = said[0, :24].reshape(2, 12), said[0, 24:48].reshape(2, 12)
    assert (int(columns[1].argmax()), int(rows[1].argmax())) == (3, 11)
    assert columns[1].sum() == rows[1].sum() == 1.0
    assert torch.equal(columns[0], own[0, :12])
    assert torch.equal(rows[0], own[0, 24:36])


@pytest.mark.slow  # the quick one holds the arithmetic; this one that places reach the policy's expert
def test_the_shipped_policy_is_told_and_plays(tmp_path: Path) -> None:
    out = tmp_path / 'told.json'
    bundle = str(ROOT / 'bundles/demo')
    assert TOLD_PLACES['main']([bundle, '--task', 'stack', '--seeds', '1', '--out', str(out)]) == 0
    found = json.loads(out.read_text())['failed scenes']
    assert list(found) == ['told of nothing', 'told of acted on', 'told of put on or beside', 'told of both']
    assert found['told of both'] == {'stack': []}
