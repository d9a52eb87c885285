"""Which topic of a recording is meant: the one place where names of a contract meet names of a bag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ki_bags.reader import Bag, BagTopic


@dataclass(frozen=True)
class TopicMatch:
    """What a recording holds under a name.

    Attributes:
        wanted: The name in the contract.
        asked: What it is called in the recording, as far as a remapping says so.
        fits: Topics of that name and of an acceptable type.
        others: Topics of that name and of another type.
    """

    wanted: str
    asked: str
    fits: tuple[BagTopic, ...]
    others: tuple[BagTopic, ...]

    @property
    def topic(self) -> BagTopic | None:
        """The topic that is meant; None when there is none, or more than one."""
        return self.fits[0] if len(self.fits) == 1 else None

    @property
    def doubt(self) -> str:
        """Which topics it could be, and what to write, when there is more than one; else empty."""
        if len(self.fits) < 2:
            return ''
        names = ', '.join(sorted(each.name for each in self.fits))
        return f'{self.wanted} could be any of {names}; say which with --remap {self.wanted}:=NAME'


def find_topic(bag: Bag, wanted: str, types: tuple[str, ...], remap: Mapping[str, str]) -> TopicMatch:
    """The topics of a recording that a contract may mean by `wanted`: of the same name, or else that end like it.

    Args:
        bag: The recording.
        wanted: As in the contract; a relative name may carry any namespace in the recording, an absolute one none.
        types: Acceptable message types.
        remap: Contract name -> name in the recording.
    """
    asked = remap.get(wanted, wanted)
    name = '/' + asked.lstrip('/').removeprefix('~/')
    same = [each for each in bag.topics.values() if '/' + each.name.lstrip('/') == name]
    if not same and not asked.startswith('/'):
        same = [each for each in bag.topics.values() if each.name.endswith(name)]
    fits = tuple(each for each in same if each.type in types)
    return TopicMatch(wanted, asked, fits, tuple(each for each in same if each.type not in types))
