"""Is the robot told what to do, in words that differ where tasks do? Checks on the instructions of episodes."""

from __future__ import annotations

import difflib
import itertools
import re
from collections import defaultdict

from training.doctor.findings import ERROR, NOTE, WARNING, Finding, StepRange
from training.samples.dataset import EpisodeDataset

MOST_TEXTS = 500
SAME_WORD = 0.8  # likeness of two words that are one, misspelt or in the plural
NO_WORDS = {'', 'task', 'none', 'null', 'n a', 'na', 'todo', 'test', 'default', 'unknown', 'episode', 'instruction'}


def word_findings(dataset: EpisodeDataset) -> list[Finding]:
    """All checks of this file."""
    places: defaultdict[str, list[StepRange]] = defaultdict(list)
    for number in dataset.episode_numbers:
        entry, about = dataset.index.episodes[number]
        text = about.texts[0] if about.texts else ''
        places[text].append(StepRange(entry.path, number, 0, about.steps))
    said = {text: where for text, where in places.items() if _plain(text) not in NO_WORDS}
    if not said:
        text = 'no episode has an instruction; give one with --task'
        return [Finding(ERROR, 'instruction', 'no_language', text)]
    return [*_missing(places), *_one(places), *_variants(said)]


def _missing(places: dict[str, list[StepRange]]) -> list[Finding]:
    bare = [place for text, where in places.items() if _plain(text) in NO_WORDS for place in where]
    if not bare:
        return []
    count = sum(len(where) for where in places.values())
    empty = sorted({text for text in places if text and _plain(text) in NO_WORDS})
    what = f' (or only {", ".join(map(repr, empty))})' if empty else ''
    text = f'{len(bare)} of {count} episodes have no instruction{what}; give them one with --task, or leave them out'
    return [Finding(WARNING, 'instruction', 'some_language', text, tuple(bare))]


def _one(places: dict[str, list[StepRange]]) -> list[Finding]:
    if len(places) != 1:
        return []
    text = f'every episode has the instruction {next(iter(places))!r}: the policy will learn to ignore language'
    return [Finding(NOTE, 'instruction', 'one_instruction', text)]


def _variants(said: dict[str, list[StepRange]]) -> list[Finding]:
    """Instructions that are one task in two spellings: the policy takes them for two."""
    alike = []
    for one, other in itertools.combinations(sorted(said)[:MOST_TEXTS], 2):
        if _are_one(_plain(one).split(), _plain(other).split()):
            alike.append((one, other))
    if not alike:
        return []
    one, other = alike[0]
    more = f' and {len(alike) - 1} more pairs' if len(alike) > 1 else ''
    text = f'{one!r} and {other!r}{more} differ in spelling alone; if they are one task, write them alike'
    return [Finding(NOTE, 'instruction', 'similar', text, (said[one][0], said[other][0]))]


def _are_one(first: list[str], second: list[str]) -> bool:
    if len(first) != len(second):
        return False
    differ = [(one, other) for one, other in zip(first, second, strict=True) if one != other]
    if not differ:
        return True
    [(one, other), *more] = differ
    if more or any(letter.isdigit() for letter in one + other) or min(len(one), len(other)) < 4:
        return False
    return difflib.SequenceMatcher(None, one, other).ratio() >= SAME_WORD


def _plain(text: str) -> str:
    """Without case, punctuation and double spaces."""
    return ' '.join(re.findall(r'\w+', text.lower()))
