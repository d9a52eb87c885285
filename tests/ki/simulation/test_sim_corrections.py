"""`ki sim correct`: bags of a policy and of who corrected it, made once."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip('mujoco')

from typer.testing import CliRunner

from ki.main import app
from ki_bags.reader import open_bag
from ki_sim.world.objects import HELD_OUT

DEMO = Path(__file__).resolve().parents[3] / 'bundles' / 'demo'


def test_a_corrected_episode_is_kept_once_and_says_who_drove_and_what_was_asked(tmp_path: Path) -> None:
    options = ['--task', 'put_in_bin', '--episodes', '1', '--patience', '0.5']
    asked = ['sim', 'correct', str(DEMO), '--out', str(tmp_path), *options]
    for _ in range(2):
        for more in ([], ['--heldout']):
            done = CliRunner().invoke(app, [*asked, *more, '--backend', 'torch'])
            assert done.exit_code == 0, done.output
    assert '0 corrected, 0 done by the policy alone, 0 failed, 1 were there' in done.output
    assert sorted(each.name for each in tmp_path.iterdir()) == ['put_in_bin-500000', 'put_in_bin-500000-heldout']
    for folder in tmp_path.iterdir():
        bag = open_bag(folder)
        decoded = {topic: [] for topic in ('/control_source', '/instruction')}
        for each in bag.messages():
            if each.topic in decoded:
                decoded[each.topic].append(bag.decode(each))
        assert [each.source for each in decoded['/control_source']] == [1, 0, 2], 'policy, hold, human'
        words = str(decoded['/instruction'][0])
        new = any(f'{colour} {kind}' in words for colour, kind in HELD_OUT)
        assert new == folder.name.endswith('-heldout')
