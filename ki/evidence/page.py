"""The page docs/evidence.md, written from cells: nothing on it is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ki.evidence.cells import EvidenceCell, load_cells
from ki.evidence.figures import FIGURES, MEASURES, NOT_RUN, ClaimVerdict, Figure, bar, cells_at, judge, start_of
from ki.evidence.matrix import MatrixPlan, load_plan
from ki.evidence.modes import modes_section
from ki.evidence.picture import picture_of
from ki.evidence.statistics import Estimate
from ki_common.files import atomic_file, write_text

MATRIX = Path('benchmarks/evidence/matrix.yaml')
PAGE = Path('docs/evidence.md')
BAR = 20  # characters of a whole bar


def write_page(matrix: Path, page: Path) -> str:
    """Writes the page of a matrix and its picture beside it, and gives the text.

    Raises:
        EvidenceError: the matrix or a cell cannot be read.
        NodeError: matplotlib is not installed.
    """
    plan = load_plan(matrix)
    cells = load_cells(plan.folder / 'cells', plan.digest)
    drawn = picture_of(cells, plan.matrix.recipes, plan.matrix.samples)
    picture = page.with_suffix('.png')
    if drawn:
        with atomic_file(picture) as file:
            file.write(drawn)
    text = page_of(plan, cells, plan.folder, picture.name if drawn else '')
    write_text(page, text)
    return text


def page_of(plan: MatrixPlan, cells: Sequence[EvidenceCell], folder: Path, picture: str = '') -> str:
    """The page as Markdown; `picture` lies beside it, empty: there is none."""
    points, matrix = plan.matrix.samples, plan.matrix
    verdicts = {figure.name: [judge(claim, cells, points) for claim in figure.claims] for figure in FIGURES}
    done = sum(not cell.error for cell in cells if cell.samples)
    whole = len(matrix.recipes) * len(matrix.seeds) * len(points)
    parts = [
        "# Evidence: the paper's comparisons, run here",
        _introduction(plan, done, whole),
        '## What came out',
        _overview(verdicts),
        *([f'![Success by samples of training, and what every recipe came to]({picture})'] if picture else []),
        *(_figure(figure, verdicts[figure.name], cells, points) for figure in FIGURES),
        _knowledge(cells, matrix.recipes, points[-1]),
        modes_section(folder),
        _how(),
    ]
    return '\n\n'.join(parts) + '\n'


def _introduction(plan: MatrixPlan, done: int, whole: int) -> str:
    matrix, start, state = plan.matrix, plan.base.start, plan.base.model.get('state_repr')
    told = f' Where a recipe is not about the state (figure 10), the state is told as `{state}`.' if state else ''
    if plan.base.model.get('dense'):
        told += (
            ' With language data go labels of what patches show, and of which patches the words ask for '
            '(`model.dense`): the part that boxes have in those of PaliGemma. Recipes without language data learn '
            'neither.'
        )
    return (
        f'`ki evidence run` writes this page from the cells in `benchmarks/evidence/cells`: {done} of {whole} are '
        f'there. Every recipe of [recipes](recipes.md) starts from `{start}`, as the paper starts all from PaliGemma, '
        f'and trains on the same data, {matrix.samples[-1]:,} samples, with {len(matrix.seeds)} seeds.{told} It is '
        f'judged on {matrix.scenes} scenes of the simulator ({", ".join(matrix.task_names)}), the same for all, each '
        f'with two instructions, and on {matrix.curve_scenes} of them at the points before. Bars are '
        'means over seeds with 95 % Wilson intervals. A claim is *reproduced* where the 95 % bootstrap interval of the '
        'difference, over seeds and scenes, says so; *not reproduced* where it excludes what the paper says; else '
        '*undecided*, as with fewer than two seeds. What has not been run says so. A verdict speaks of models of this '
        'size and of a start as small, not of the size of the paper.'
    )


def _overview(verdicts: dict[str, list[ClaimVerdict]]) -> str:
    rows = ['| | reproduced | not reproduced | undecided | not run |', '|---|---|---|---|---|']
    for name, found in verdicts.items():
        counts = [sum(each.verdict == kind for each in found) for kind in _KINDS]
        rows.append(f'| {name} | {" | ".join(map(str, counts))} |')
    return '\n'.join(rows)


_KINDS = ('reproduced', 'not reproduced', 'undecided', NOT_RUN)


def _figure(
    figure: Figure, verdicts: Sequence[ClaimVerdict], cells: Sequence[EvidenceCell], points: Sequence[int]
) -> str:
    parts = [f'## {figure.name}: {figure.title}', figure.text, _bars(figure, cells, points[-1])]
    if figure.curve:
        parts.append(_curve(figure, cells, points))
    rows = ['| claim | difference | verdict |', '|---|---|---|']
    for each in verdicts:
        early = 0 <= each.claim.point < len(points)
        at = f' after {points[each.claim.point]:,} samples' if early else ''
        rows.append(f'| {each.claim.text}{at} | {_difference(each)} | **{each.verdict}** |')
    return '\n\n'.join([*parts, '\n'.join(rows)])


def _bars(figure: Figure, cells: Sequence[EvidenceCell], samples: int) -> str:
    titles = [MEASURES[name][1] for name in figure.measures]
    rows = [f'| recipe | seeds | {" | ".join(titles)} |', f'|---|---|{"---|" * len(titles)}']
    for recipe in figure.recipes:
        found = cells_at(cells, recipe, samples)
        values = [_bar(bar(cells, recipe, samples, name), name) for name in figure.measures]
        errors = [cell.error for cell in cells if cell.recipe == recipe and cell.samples == samples and cell.error]
        seeds = str(len(found)) if found else f'not played: {errors[0]}' if errors else NOT_RUN
        rows.append(f'| `{recipe}` | {seeds} | {" | ".join(values)} |')
    return '\n'.join(rows)


def _bar(rate: Estimate | None, measure: str) -> str:
    if rate is None:
        return ''
    if measure == 'duration':
        return f'{rate.value:.1f} s [{rate.low:.1f}, {rate.high:.1f}]'
    return f'`{"█" * round(rate.value * BAR):<{BAR}}` {rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}]'


def _curve(figure: Figure, cells: Sequence[EvidenceCell], points: Sequence[int]) -> str:
    rows = [f'| success after | {" | ".join(f"{each:,}" for each in points)} |', f'|---|{"---|" * len(points)}']
    for recipe in figure.recipes:
        values = [bar(cells, recipe, each, 'success') for each in points]
        shown = ['' if each is None else f'{each.value:.0%} [{each.low:.0%}, {each.high:.0%}]' for each in values]
        rows.append(f'| `{recipe}` | {" | ".join(shown)} |')
    return '\n'.join(rows)


def _difference(verdict: ClaimVerdict) -> str:
    found = verdict.found
    if found is None:
        return ''
    if verdict.claim.says == 'longer':
        return f'{found.value:.2f} times [{found.low:.2f}, {found.high:.2f}]'
    return f'{100 * found.value:+.0f} points [{100 * found.low:+.0f}, {100 * found.high:+.0f}]'


def _knowledge(cells: Sequence[EvidenceCell], recipes: Sequence[str], samples: int) -> str:
    """Held-out questions before and after training on actions."""
    start = start_of(cells)
    rows = ['| recipe | questions right | |', '|---|---|---|']
    rows.append(f'| before: the start | {_answers(start.questions if start else {})} | |')
    before = start.questions.get('accuracy') if start and start.questions else None
    for recipe in recipes:
        found = [cell.questions for cell in cells_at(cells, recipe, samples) if cell.questions]
        shown = ', '.join(_answers(each) for each in found) or NOT_RUN
        kept = [each['accuracy'] for each in found if each['accuracy'] is not None]
        change = f'{100 * (sum(kept) / len(kept) - before):+.0f} points' if kept and before is not None else ''
        rows.append(f'| `{recipe}` | {shown} | {change} |')
    text = 'Held-out questions about pictures, before and after training on actions; one figure a seed.'
    return '\n\n'.join(['## Knowledge kept', text, '\n'.join(rows)])


def _answers(questions: object) -> str:
    if not isinstance(questions, dict) or questions.get('accuracy') is None:
        return NOT_RUN
    return f'{questions["accuracy"]:.0%} of {questions["asked"]}'


def _how() -> str:
    return (
        '## Run it again\n\n'
        '```bash\n'
        'ki evidence run                       # every cell that is missing, on all cores; goes on after a stop\n'
        'ki evidence run --ray auto            # the same over a Ray cluster\n'
        'ki evidence modes BUNDLE --rtc OTHER  # how chunks are carried out, against delays\n'
        'ki evidence show                      # this page\n'
        '```\n\n'
        'Cells belong to `benchmarks/evidence/matrix.yaml`, the run that it names and the bundle that this starts '
        'from; those of others are not shown.'
    )
