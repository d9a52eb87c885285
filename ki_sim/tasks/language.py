"""Words: the many ways in which a task is put to the robot, and the names of what it does next."""

from __future__ import annotations

import numpy as np

# {thing}, {other} are 'red cup'; {side} is left or right; {giver} and {taker} are hands.
WORDINGS: dict[str, tuple[str, ...]] = {
    'put_in_bin': (
        'put the {thing} into the {side} bin',
        'put the {thing} in the {side} bin',
        'place the {thing} in the {side} bin',
        'drop the {thing} into the {side} bin',
        'pick up the {thing} and put it in the {side} bin',
        'take the {thing} and place it in the bin on the {side}',
        'move the {thing} to the {side} bin',
        'the {thing} goes into the {side} bin',
        'could you put the {thing} in the bin on the {side}',
        'please put the {thing} into the {side} bin',
    ),
    'stack': (
        'stack the {thing} on the {other}',
        'put the {thing} on top of the {other}',
        'place the {thing} on the {other}',
        'pick up the {thing} and set it on the {other}',
        'set the {thing} down on top of the {other}',
        'the {thing} belongs on top of the {other}',
        'please stack the {thing} on top of the {other}',
        'could you put the {thing} on the {other}',
    ),
    'next_to': (
        'move the {thing} next to the {other}',
        'put the {thing} beside the {other}',
        'place the {thing} next to the {other}',
        'set the {thing} down close to the {other}',
        'bring the {thing} over to the {other}',
        'the {thing} should stand next to the {other}',
        'please put the {thing} right beside the {other}',
        'could you move the {thing} near the {other}',
    ),
    'bus_table': (
        'bus the table: dishes into the {side} bin and trash into the {other_side} bin',
        'clear the table, dishes to the {side} bin, trash to the {other_side} bin',
        'put all dishes in the {side} bin and all trash in the {other_side} bin',
        'clean up: dishes go {side}, trash goes {other_side}',
        'tidy the table, with the trash in the {other_side} bin and the dishes in the {side} bin',
        'sort everything, dishes in the {side} bin and trash in the {other_side} one',
        'please clear away the dishes into the {side} bin and the trash into the {other_side} bin',
        'trash belongs in the {other_side} bin and dishes in the {side} bin, clean the table',
    ),
    'hand_over': (
        'hand the {thing} from the {giver} hand to the {taker} hand',
        'pass the {thing} from your {giver} hand to your {taker} hand',
        'pick up the {thing} with the {giver} hand and give it to the {taker} hand',
        'take the {thing} in the {giver} hand, then hand it over to the {taker} hand',
        'use the {giver} hand to pass the {thing} to the {taker} hand',
        'grab the {thing} with the {giver} arm and pass it to the {taker} arm',
        'give the {thing} to your {taker} hand, picking it up with the {giver} one',
        'please move the {thing} over from the {giver} to the {taker} hand',
    ),
    'fetch': (
        'fetch the {thing} from the second table',
        'drive to the second table and fetch the {thing}',
        'get the {thing} from the other table',
        'go to the other table and bring back the {thing}',
        'bring me the {thing} from the second table',
        'the {thing} is on the second table, bring it here',
        'please go and get the {thing} from the other table',
        'drive over to the second table and bring the {thing} to this one',
    ),
}
WORDINGS['demo'] = WORDINGS['put_in_bin']


def word(task: str, rng: np.random.Generator, **names: str) -> str:
    """One wording of a task, drawn at random, with its names filled in."""
    return str(rng.choice(WORDINGS[task])).format(**names)
