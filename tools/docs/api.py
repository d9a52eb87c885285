"""One page of Python API a room: mkdocstrings fills it from the docstrings."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = {
    'ki_robot': 'What a robot is to a model: contract, observations, chunks, guard.',
    'ki_bags': 'Recordings on disk.',
    'ki_vla': 'The model, its tokens, losses, engines and bundles.',
    'ki_policy_node': 'The nodes, and the replay of recordings through the same code.',
    'training': 'From recordings to bundles.',
    'ki_sim': 'The simulated robot.',
    'ki_common': 'What every room uses.',
}


def pages() -> dict[str, str]:
    """A page for each room: each of its modules, in the order of the folders."""
    return {f'reference/python/{room}.md': _page(room, about) for room, about in ROOMS.items()}


def _page(room: str, about: str) -> str:
    said = [f'# {room}', '', about, '']
    for path in sorted((ROOT / room).rglob('*.py')):
        if path.name != '__init__.py':
            said += [f'::: {".".join(path.relative_to(ROOT).with_suffix("").parts)}', '']
    return '\n'.join(said)
