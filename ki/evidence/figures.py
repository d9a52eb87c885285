"""The paper's figures as claims that cells can answer: which recipes, which measure, and what is said of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ki.evidence import statistics
from ki.evidence.cells import START, EvidenceCell
from ki.evidence.statistics import Estimate, Measure

REPRODUCED, NOT_REPRODUCED, UNDECIDED, NOT_RUN = 'reproduced', 'not reproduced', 'undecided', 'not run'
SMALL = 0.05  # a difference that nobody would choose a recipe for
ALIKE = 0.10  # within which two recipes are called alike
SEEDS = 2  # of each recipe, without which nothing is decided
SLOWER = 1.5  # times as long, for "slow"

MEASURES: dict[str, tuple[Measure, str]] = {
    'success': (statistics.success, 'success'),
    'score': (statistics.score, 'objects where they belong'),
    'followed': (statistics.followed, 'both instructions of a scene followed'),
    'heldout_success': (statistics.success, 'success, objects never acted on'),
    'heldout_followed': (statistics.followed, 'instruction followed, objects never acted on'),
    'duration': (statistics.duration, 'seconds of an episode on the wall'),
}


@dataclass(frozen=True)
class Claim:
    """What the paper says of two recipes: `one` has `more` of a measure than `other`, `as much`, or takes `longer`."""

    one: str
    says: str
    other: str
    measure: str = 'success'
    point: int = -1  # of the points of training, counted from 0; -1: the last

    @property
    def text(self) -> str:
        """In words."""
        what = {'more': 'more than', 'alike': 'as much as', 'longer': f'at least {SLOWER} times as long as'}[self.says]
        return f'`{self.one}` {what} `{self.other}`: {MEASURES[self.measure][1]}'


@dataclass(frozen=True)
class Figure:
    """A figure of the paper, or a question of ours, with the recipes whose bars are shown."""

    name: str
    title: str
    text: str
    recipes: tuple[str, ...]
    measures: tuple[str, ...]
    claims: tuple[Claim, ...]
    curve: bool = False


@dataclass(frozen=True)
class ClaimVerdict:
    """A claim against the cells: the difference (or ratio) with its interval, and what follows."""

    claim: Claim
    found: Estimate | None
    verdict: str


FIGURES = (
    Figure(
        'Figures 4 and 8',
        'Against the baselines',
        'Insulation does best and follows words best. Gradients from the expert (`pi0`, `joint_no_vlm`) harm '
        'following; `pi0_fast` follows as well but does worse; neither `hybrid` nor a frozen backbone is viable.',
        ('ours', 'pi0', 'pi0_fast', 'joint_no_vlm', 'hybrid', 'frozen'),
        ('success', 'followed'),
        (
            *(Claim('ours', 'more', other) for other in ('pi0', 'pi0_fast', 'joint_no_vlm', 'hybrid', 'frozen')),
            *(Claim('ours', 'more', other, 'followed') for other in ('pi0', 'joint_no_vlm')),
            Claim('ours', 'alike', 'pi0_fast', 'followed'),
        ),
    ),
    Figure(
        'Figure 6b',
        'How fast it trains',
        'Flow matching alone needs many more steps; insulation trains as fast as action tokens alone.',
        ('ours', 'pi0', 'pi0_fast'),
        ('success',),
        (
            Claim('ours', 'more', 'pi0', point=1),
            Claim('ours', 'more', 'pi0', point=2),
            Claim('ours', 'alike', 'pi0_fast', point=1),
        ),
        curve=True,
    ),
    Figure(
        'Figures 6a and 7',
        'What language data is for',
        'Joint training does worse than insulation. Without language data insulation does slightly worse, and joint '
        'training follows worse. Objects that no action data shows are followed thanks to language data.',
        ('ours', 'ours_no_vlm', 'joint', 'joint_no_vlm'),
        ('success', 'followed', 'heldout_followed'),
        (
            Claim('ours', 'more', 'joint'),
            Claim('ours', 'more', 'ours_no_vlm'),
            Claim('joint', 'more', 'joint_no_vlm', 'followed'),
            Claim('ours', 'more', 'ours_no_vlm', 'heldout_followed'),
            Claim('joint', 'more', 'joint_no_vlm', 'heldout_followed'),
        ),
    ),
    Figure(
        'Figure 5',
        'Architectures and action tokens',
        '`pi0_fast` takes twice as long; `oft` does worst; naive tokens are better than none and worse than FAST, and '
        'every fifth of them is better than all.',
        ('ours', 'joint', 'pi0', 'pi0_fast', 'transfusion', 'oft', 'naive', 'naive_stride5'),
        ('success', 'followed', 'duration'),
        (
            Claim('pi0_fast', 'longer', 'ours', 'duration'),
            Claim('ours', 'more', 'oft'),
            Claim('ours', 'more', 'naive'),
            Claim('naive', 'more', 'pi0'),
            Claim('naive_stride5', 'more', 'naive'),
            Claim('transfusion', 'more', 'pi0', 'followed'),
        ),
    ),
    Figure(
        'Figure 10',
        'How the state is told',
        'State as text and as one continuous token do as well; special tokens do worse.',
        ('ours', 'ours_text_state', 'ours_continuous_state', 'ours_special_state', 'pi0'),
        ('success',),
        (
            Claim('ours_text_state', 'alike', 'ours_continuous_state'),
            Claim('ours_text_state', 'more', 'ours_special_state'),
        ),
    ),
    Figure(
        'Arms of control',
        'Is it the stop-gradient?',
        'Not of the paper: what independent work doubts. Each arm is compared with insulation.',
        ('ours', 'ours_no_fast', 'graded', 'deaf_first', 'consistent', 'lower_half_frozen', 'joint'),
        ('success', 'followed', 'heldout_followed'),
        tuple(
            Claim('ours', 'more', other, measure)
            for other in ('ours_no_fast', 'graded', 'deaf_first', 'consistent', 'lower_half_frozen')
            for measure in ('success', 'followed')
        ),
    ),
)


def cells_at(cells: Sequence[EvidenceCell], recipe: str, samples: int) -> list[EvidenceCell]:
    """The cells of a recipe at a point that were played."""
    return [cell for cell in cells if cell.recipe == recipe and cell.samples == samples and not cell.error]


def bar(cells: Sequence[EvidenceCell], recipe: str, samples: int, measure: str) -> Estimate | None:
    """The height of a bar with its interval; None where there is nothing."""
    found, (function, _) = cells_at(cells, recipe, samples), MEASURES[measure]
    if measure == 'duration':
        return statistics.mean(found, function)
    return statistics.share(found, function, part_of(measure))


def part_of(measure: str) -> str:
    """Which episodes of a cell a measure is of."""
    return 'heldout' if measure.startswith('heldout') else 'episodes'


def judge(claim: Claim, cells: Sequence[EvidenceCell], points: Sequence[int]) -> ClaimVerdict:
    """A claim against the cells: reproduced or not where the 95 % interval says so, else undecided."""
    if claim.point >= len(points):
        return ClaimVerdict(claim, None, NOT_RUN)
    samples, (function, _) = points[claim.point], MEASURES[claim.measure]
    one, other = (cells_at(cells, name, samples) for name in (claim.one, claim.other))
    if claim.says == 'longer':
        found = _ratio(claim, cells, samples)
    else:
        found = statistics.difference(one, other, function, part_of(claim.measure))
    if found is None:
        return ClaimVerdict(claim, None, NOT_RUN)
    if min(len(one), len(other)) < SEEDS:
        return ClaimVerdict(claim, found, UNDECIDED)
    if claim.says == 'longer':
        verdict = REPRODUCED if found.low > SLOWER else NOT_REPRODUCED if found.high < SLOWER else UNDECIDED
    elif claim.says == 'more':
        verdict = REPRODUCED if found.low > 0 else NOT_REPRODUCED if found.high < SMALL else UNDECIDED
    else:
        inside, outside = found.low > -ALIKE and found.high < ALIKE, found.low > ALIKE or found.high < -ALIKE
        verdict = REPRODUCED if inside else NOT_REPRODUCED if outside else UNDECIDED
    return ClaimVerdict(claim, found, verdict)


def _ratio(claim: Claim, cells: Sequence[EvidenceCell], samples: int) -> Estimate | None:
    """How many times as much one recipe comes to as the other; None where one was not played."""
    one, other = (bar(cells, name, samples, claim.measure) for name in (claim.one, claim.other))
    if one is None or other is None:
        return None
    return Estimate(one.value / other.value, one.low / other.high, one.high / other.low, one.n)


def start_of(cells: Sequence[EvidenceCell]) -> EvidenceCell | None:
    """The cell of the bundle that all recipes start from."""
    return next((cell for cell in cells if cell.recipe == START), None)
