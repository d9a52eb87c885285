"""Writes the generated pages of the documentation; mkdocs runs this file (plugin gen-files in mkdocs.yml).

One module beside this file makes each kind of page, from the code itself, so that no page can be out of date.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import api
import commands
import interfaces
import messages
import mkdocs_gen_files
import repository_pages
import settings

PAGES = {
    'reference/cli.md': commands.page,
    'reference/parameters.md': settings.parameters_page,
    'reference/launch.md': settings.launch_page,
    'reference/contract.md': settings.contract_page,
    'reference/run.md': settings.run_page,
    'reference/up.md': settings.up_page,
    'reference/interfaces.md': interfaces.page,
    'reference/messages.md': messages.page,
}


def main() -> None:
    """Every generated page, and the pictures that shown pages need."""
    pages = {name: make() for name, make in PAGES.items()} | repository_pages.pages() | api.pages()
    for name, text in pages.items():
        with mkdocs_gen_files.open(name, 'w') as file:
            file.write(text)


main()
