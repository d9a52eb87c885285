"""Recordings are opened by what lies in their folder: bags, arrays, or an index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ki_robot.contract.contract import Contract
from training.errors import TrainingError
from training.index.index import index_bags
from training.index.recordings import index_folder, open_recordings

MakeBag = Callable[..., Path]


def test_bags_are_indexed_where_there_is_no_index_yet(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    one = make_bag('one')
    assert open_recordings(one, toy).folder == tmp_path / 'bags' / 'one.index'
    assert not (one / 'index').exists()
    all_of_them = open_recordings(tmp_path / 'bags', toy, task='tidy up')
    assert all_of_them.folder == index_folder(tmp_path / 'bags') == tmp_path / 'bags' / 'index'
    assert open_recordings(tmp_path / 'bags', toy).hash == all_of_them.hash
    assert index_folder(all_of_them.folder) == all_of_them.folder


def test_an_index_keeps_its_own_contract(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    made = index_bags(make_bag(), toy, tmp_path / 'index')
    other = Contract.parse({**toy.to_dict(), 'name': 'other'})
    assert open_recordings(made.folder, other).contract == toy


def test_arrays_of_the_simulator_are_opened_and_examined(arrays_folder: Path, toy: Contract, tmp_path: Path) -> None:
    from ki.doctor.doctor_data import report

    assert len(open_recordings(arrays_folder, toy).episodes) == 3
    (tmp_path / 'toy.yaml').write_text(yaml.safe_dump(toy.to_dict()), encoding='utf-8')
    made = report(arrays_folder, None, arrays_folder, None, str(tmp_path / 'toy.yaml'))
    assert [row.column for row in made.differences] == list(toy.state_names)
    assert not any(row.level for row in made.differences)
    assert 'one_instruction' in {finding.kind for finding in made.findings}


def test_a_folder_that_is_not_there_is_named(toy: Contract, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match='nothing does not exist'):
        open_recordings(tmp_path / 'nothing', toy)


def test_a_recording_that_came_later_is_taken_up(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    make_bag('one')
    bags = tmp_path / 'bags'
    before = open_recordings(bags, toy, task='tidy up')
    written = (before.folder / 'index.json').stat().st_mtime_ns
    assert open_recordings(bags, toy).hash == before.hash
    assert (before.folder / 'index.json').stat().st_mtime_ns == written, 'what is current is left alone'
    make_bag('two')
    after = open_recordings(bags, toy)
    assert len(after.entries) == 2
    assert after.options == before.options, 'indexed as the others were'
    edited = Contract.parse({**toy.to_dict(), 'rate_hz': 10.0})
    assert open_recordings(bags, edited).contract == edited


def test_an_index_for_another_robot_is_kept_and_said(make_bag: MakeBag, toy: Contract, tmp_path: Path) -> None:
    make_bag('one')
    open_recordings(tmp_path / 'bags', toy)
    other = Contract.parse({**toy.to_dict(), 'name': 'other'})
    with pytest.warns(UserWarning, match='was made for toy, and other is not used'):
        assert open_recordings(tmp_path / 'bags', other).contract == toy
