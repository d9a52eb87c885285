"""The table of docs/recipes.md that says how a policy of each recipe is run: `python tools/docs/recipes.py` writes it.

tests/training/train/test_every_recipe.py takes each recipe that way, and holds the table.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'recipes.md'
BEGIN, END = '<!-- table: how each is run; tools/docs/recipes.py writes it -->\n', '<!-- end of table -->'
ACTIONS = {
    'expert': 'action expert, Euler steps',
    'shared': 'backbone, Euler steps',
    'parallel': 'backbone, all steps at once',
    'tokens': 'action tokens, said one by one',
}


def serving_table() -> str:
    """Recipe by recipe: where its actions come from, its graphs, and which chunks it continues."""
    from ki_vla.engine.exported import STAGES, TOKEN_GRAPHS
    from ki_vla.model.config import HEAD_KINDS
    from ki_vla.objective.recipes import RECIPES
    from tools.docs.tables import code, table

    rows = []
    for name, recipe in RECIPES.items():
        says = recipe.loss == 'none'
        kinds = () if says else HEAD_KINDS[recipe.head]
        graphs = (STAGES[0], *TOKEN_GRAPHS) if says else (*STAGES, *kinds)
        continued = 'trained and guided' if 'trained' in kinds else 'no: `latest`'
        where = ACTIONS['tokens' if says else recipe.head]
        rows.append((code(name), 'yes', where, ' '.join(map(code, graphs)), 'torch, ONNX', continued))
    return table(('recipe', 'trains', 'actions', 'graphs of `ki export`', 'served by', 'continues chunks'), rows)


def page(text: str) -> str:
    """The page with the table as it is now."""
    before, rest = text.split(BEGIN, 1)
    return before + BEGIN + serving_table() + END + rest.split(END, 1)[1]


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    PAGE.write_text(page(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
