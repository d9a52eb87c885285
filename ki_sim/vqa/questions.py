"""From facts about a scene to lines of text: captions, questions with answers, boxes as location tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ki_sim.vqa.boxes import PictureBox, box_text
from ki_sim.world.objects import ALL_COLOURS, ALL_KINDS
from ki_sim.world.robot import SIDES

Line = dict[str, Any]  # kind, prompt, answer, and where one thing is asked for, its point in the picture
NUMBERS = ('none', 'one', 'two', 'three', 'four', 'five', 'six')
BESIDE = 0.05  # m between two objects, sideways, for one to be left of the other


@dataclass(frozen=True)
class Fact:
    """What is true of one object: where it is, on what, its place in the base frame, and its box in the picture.

    `where` is `table`, `left bin`, `right hand` or `on`; `box` is (top, left, bottom, right) as shares of the picture.
    """

    colour: str
    kind: str
    where: str
    on: str
    x: float
    y: float
    box: PictureBox | None

    @property
    def label(self) -> str:
        """'red cup'."""
        return f'{self.colour} {self.kind}'

    @property
    def middle(self) -> list[float] | None:
        """The middle of the box, x to the right and y down, as shares of the picture."""
        if self.box is None:
            return None
        top, left, bottom, right = self.box
        return [round((left + right) / 2, 4), round((top + bottom) / 2, 4)]

    @property
    def place(self) -> str:
        """'in the left bin', 'on the blue plate', ..."""
        if self.where == 'on':
            return f'on the {self.on}'
        return 'on the table' if self.where == 'table' else f'in the {self.where}'


def lines_about(facts: Sequence[Fact], cells: npt.NDArray[np.int64], rng: np.random.Generator) -> list[Line]:
    """All kinds of lines about a scene: one caption, one list of all boxes, at most two of each other kind.

    Args:
        facts: What is true of every object.
        cells: Which of them fills each cell of a coarse grid, from `locate.cells_of`.
        rng: Chooses among wordings and questions.
    """
    lines = [caption(facts, rng)]
    for make in (colours, counts, existence, sides, places, bins, hands, boxes):
        found = list(make(facts, rng))
        keep = rng.permutation(len(found))[:2]
        lines += [found[i] for i in sorted(keep)]
    return [*lines, everything(facts), *maps(facts, cells)]


def caption(facts: Sequence[Fact], rng: np.random.Generator) -> Line:
    """One or two sentences that name everything and where it is."""
    order = [facts[i] for i in rng.permutation(len(facts))]
    groups: dict[str, list[str]] = {}
    for fact in order:
        groups.setdefault(fact.place, []).append(article(fact.label))
    parts = [f'{listed(names)} {where}' for where, names in groups.items()]
    text = str(rng.choice(['There is {}.', 'A robot sees {}.', 'The picture shows {}.'])).format('; '.join(parts))
    prompt = str(rng.choice(['caption', 'describe the scene', 'what do you see?']))
    return {'kind': 'caption', 'prompt': prompt, 'answer': text}


def colours(facts: Sequence[Fact], rng: np.random.Generator) -> Iterator[Line]:
    """The colour of the only object of its kind."""
    kinds = Counter(fact.kind for fact in facts)
    for fact in facts:
        if kinds[fact.kind] == 1:
            prompt = str(rng.choice(['what colour is the {}?', 'which colour is the {}?'])).format(fact.kind)
            yield {'kind': 'colour', 'prompt': prompt, 'answer': fact.colour}


def counts(facts: Sequence[Fact], rng: np.random.Generator) -> Iterator[Line]:
    """How many there are, of all, of a colour, or of a kind."""
    yield {'kind': 'count', 'prompt': 'how many objects are there?', 'answer': NUMBERS[len(facts)]}
    colour = str(rng.choice([*_twice([fact.colour for fact in facts]), *rng.choice(list(ALL_COLOURS), 2)]))
    number = sum(fact.colour == colour for fact in facts)
    yield {'kind': 'count', 'prompt': f'how many {colour} objects are there?', 'answer': NUMBERS[number]}
    kind = str(rng.choice([*_twice([fact.kind for fact in facts]), *rng.choice(list(ALL_KINDS), 2)]))
    number = sum(fact.kind == kind for fact in facts)
    yield {'kind': 'count', 'prompt': f'how many {plural(kind)} are there?', 'answer': NUMBERS[number]}


def _twice(words: list[str]) -> list[str]:
    """The words that occur more than once, if there are any: counting to one is asked often enough."""
    return [word for word in words if words.count(word) > 1] or words


def existence(facts: Sequence[Fact], rng: np.random.Generator) -> Iterator[Line]:
    """Whether there is such an object; a wrong one has one word right, so that both must be read."""
    fact = facts[int(rng.integers(len(facts)))]
    yield {'kind': 'exists', 'prompt': f'is there {article(fact.label)}?', 'answer': 'yes'}
    labels = {each.label for each in facts}
    for _ in range(20):
        if rng.random() < 0.5:
            other = f'{rng.choice(list(ALL_COLOURS))} {fact.kind}'
        else:
            other = f'{fact.colour} {rng.choice(list(ALL_KINDS))}'
        if other not in labels:
            yield {'kind': 'exists', 'prompt': f'is there {article(other)}?', 'answer': 'no'}
            return


def sides(facts: Sequence[Fact], rng: np.random.Generator) -> Iterator[Line]:
    """Left or right of each other, as the robot sees it."""
    for i, one in enumerate(facts):
        for other in facts[i + 1 :]:
            if abs(one.y - other.y) < BESIDE or one.label == other.label:
                continue
            a, b = (one, other) if rng.random() < 0.5 else (other, one)
            answer = 'left' if a.y > b.y else 'right'
            yield {'kind': 'side', 'prompt': f'is the {a.label} left or right of the {b.label}?', 'answer': answer}


def places(facts: Sequence[Fact], rng: np.random.Generator) -> Iterator[Line]:
    """Where an object is; places other than the table come first, since most objects are on the table."""
    special = [fact for fact in facts if fact.where != 'table']
    plain = [fact for fact in facts if fact.where == 'table']
    for fact in special or plain[:1]:
        yield {'kind': 'place', 'prompt': f'where is the {fact.label}?', 'answer': fact.place}
    for fact in special:
        if fact.where == 'on':
            yield {'kind': 'place', 'prompt': f'what is on the {fact.on}?', 'answer': fact.label}


def bins(facts: Sequence[Fact], rng: np.random.Generator) -> Iterator[Line]:
    """What is in a bin."""
    full = [side for side in SIDES if any(fact.where == f'{side} bin' for fact in facts)]
    side = str(rng.choice(full if full and rng.random() < 0.7 else SIDES))
    inside = [fact.label for fact in facts if fact.where == f'{side} bin']
    yield {'kind': 'bin', 'prompt': f'what is in the {side} bin?', 'answer': listed(inside) or 'nothing'}


def hands(facts: Sequence[Fact], rng: np.random.Generator) -> Iterator[Line]:
    """Which hand holds what."""
    held = {side: [fact.label for fact in facts if fact.where == f'{side} hand'] for side in SIDES}
    for side in SIDES:
        if held[side] or rng.random() < 0.12:
            answer = held[side][0] if held[side] else 'nothing'
            yield {'kind': 'hand', 'prompt': f'what does the {side} hand hold?', 'answer': answer}
        if held[side]:
            yield {'kind': 'hand', 'prompt': f'which hand holds the {held[side][0]}?', 'answer': side}


def boxes(facts: Sequence[Fact], rng: np.random.Generator) -> Iterator[Line]:
    """The box of an object, of all objects of a kind, or of all of a colour, as location tokens."""
    labels = Counter(fact.label for fact in facts)
    for fact in facts:
        if labels[fact.label] == 1:
            answer = f'{locations(fact)} {fact.label}'
            yield {'kind': 'box', 'prompt': f'detect {fact.label}', 'answer': answer, 'point': fact.middle}
    for word in ('kind', 'colour'):
        for name, number in Counter(getattr(fact, word) for fact in facts).items():
            if number > 1 or word == 'colour':
                found = sorted((fact for fact in facts if getattr(fact, word) == name), key=lambda fact: fact.box or ())
                answer = ' ; '.join(f'{locations(fact)} {name}' for fact in found)
                yield {'kind': 'box', 'prompt': f'detect {name}', 'answer': answer}


def everything(facts: Sequence[Fact]) -> Line:
    """The boxes and names of all objects, from top to bottom: much to learn from one picture, and nothing to guess."""
    found = sorted(facts, key=lambda fact: fact.box or ())
    answer = ' ; '.join(f'{locations(fact)} {fact.label}' for fact in found)
    return {'kind': 'objects', 'prompt': 'detect everything', 'answer': answer}


def maps(facts: Sequence[Fact], cells: npt.NDArray[np.int64]) -> Iterator[Line]:
    """The whole picture in words, a word for every cell from the top left on: what eyes must learn before they find.

    Each answer is as long as the grid has cells, so that the place of a word tells where in the picture it is true.
    """
    for word in ('colour', 'kind'):
        answer = ' '.join('-' if index < 0 else getattr(facts[index], word) for index in cells.flat)
        yield {'kind': 'cells', 'prompt': f'name the {word} in every cell', 'answer': answer}


def locations(fact: Fact) -> str:
    """A box as PaliGemma writes it: top, left, bottom, right, each of 1024 steps."""
    if fact.box is None:
        raise ValueError(f'the {fact.label} is not in the picture')
    return box_text(fact.box)


def things(facts: Sequence[Fact]) -> list[dict[str, Any]]:
    """What the picture shows, as heads for training only take it: `training.samples.things`."""
    places = ((fact, fact.middle) for fact in facts)
    return [{'colour': f.colour, 'kind': f.kind, 'x': at[0], 'y': at[1]} for f, at in places if at is not None]


def article(label: str) -> str:
    """'a red cup', 'an orange ball'."""
    return f'{"an" if label[0] in "aeiou" else "a"} {label}'


def plural(kind: str) -> str:
    """'boxes', 'cups'."""
    return f'{kind}es' if kind.endswith(('s', 'x', 'ch')) else f'{kind}s'


def listed(names: Sequence[str]) -> str:
    """'a, b and c'."""
    return ', '.join(names[:-1]) + f' and {names[-1]}' if len(names) > 1 else ''.join(names)
