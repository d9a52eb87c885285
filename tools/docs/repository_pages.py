"""Files of the repository as pages of the site: shown, never copied, so that each text exists once."""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Where each file is on the site.
SHOWN = {
    'ARCHITECTURE.md': 'design/architecture.md',
    'SAFETY.md': 'design/safety.md',
    'BENCHMARKS.md': 'design/benchmarks.md',
    'CONTRIBUTING.md': 'contributing.md',
    'CHANGELOG.md': 'changelog.md',
    'docs/recipes.md': 'recipes.md',
    'docs/sim/README.md': 'sim/README.md',
    'docs/policy/README.md': 'policy/README.md',
}
LINK = re.compile(r'(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)')


def pages() -> dict[str, str]:
    """The pages by their place on the site."""
    return {page: shown(source) for source, page in SHOWN.items()}


def shown(source: str) -> str:
    """The text with its links led to pages of the site; a link to any other file becomes the name of the file."""
    text = (ROOT / source).read_text(encoding='utf-8')
    return LINK.sub(lambda found: _link(found['text'], found['target'], source), text)


def _link(text: str, target: str, source: str) -> str:
    path, hash_, anchor = target.partition('#')
    if '://' in target or not path:
        return f'[{text}]({target})'
    file = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    place = SHOWN.get(file) or SHOWN.get(f'{file}/README.md')
    if place is None and file.startswith('docs/') and file.endswith('.md'):
        place = file.removeprefix('docs/')
    if place is None:
        return text if posixpath.basename(file) in text else f'{text} (`{file}`)'
    return f'[{text}]({posixpath.relpath(place, posixpath.dirname(SHOWN[source]) or ".")}{hash_}{anchor})'
