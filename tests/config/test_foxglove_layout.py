"""The Foxglove layout: every panel is placed, every topic and service is one that exists."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ki_common.nodes import NODES
from ki_robot.contract.contract import load_contract

ROOT = Path(__file__).resolve().parents[2]


def placed(tree) -> list[str]:
    return [tree] if isinstance(tree, str) else placed(tree['first']) + placed(tree['second'])


def test_the_layout_shows_what_is_there():
    layout = json.loads((ROOT / 'config' / 'foxglove' / 'bimanual_mobile.json').read_text())
    assert sorted(placed(layout['layout'])) == sorted(layout['configById'])
    contract = load_contract('bimanual_mobile')
    own = set()
    for module in ('policy_node', 'chunk_executor'):
        text = ROOT.joinpath(*NODES[module].split('.')).with_suffix('.py').read_text()
        own |= {f'/{module}/{name}' for name in re.findall(r"'~/(\w+)'", text)}
    known = own | {f'/{each.topic}' for each in (*contract.cameras, *contract.state_streams)} | {'/diagnostics'}
    text = json.dumps(layout)
    used = {name.split('.')[0] for name in re.findall(r'"(/[\w/.\[\]]+)"', text)}
    assert used
    assert used <= known
