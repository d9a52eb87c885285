"""Words: the many ways in which a task is put to the robot, and the names of what it does next."""

from __future__ import annotations

import numpy as np

# {object}, {other} are 'red cup'; {side} is left or right; {giver} and {taker} are hands.
WORDINGS: dict[str, tuple[str, ...]] = {
    'put_in_bin': (
        'put the {object} into the {side} bin',
        'put the {object} in the {side} bin',
        'place the {object} in the {side} bin',
        'drop the {object} into the {side} bin',
        'pick up the {object} and put it in the {side} bin',
        'take the {object} and place it in the bin on the {side}',
        'move the {object} to the {side} bin',
        'the {object} goes into the {side} bin',
        'could you put the {object} in the bin on the {side}',
        'please put the {object} into the {side} bin',
    ),
    'touch': (
        'touch the {object} with the {side} hand',
        'touch the {object} with your {side} hand',
        'tap the {object} with the {side} hand',
        'use the {side} hand to touch the {object}',
        'put your {side} hand on the {object}',
        'with the {side} hand, touch the {object}',
        'please touch the {object} with the {side} hand',
        'could you touch the {object} with your {side} hand',
    ),
    'push': (
        'push the {object} to the {side}',
        'push the {object} to the {side} side',
        'slide the {object} to the {side}',
        'move the {object} over to the {side} by pushing it',
        'shove the {object} to the {side} side of the table',
        'give the {object} a push to the {side}',
        'please push the {object} to the {side}',
        'could you slide the {object} to the {side} side',
    ),
    'stack': (
        'stack the {object} on the {other}',
        'put the {object} on top of the {other}',
        'place the {object} on the {other}',
        'pick up the {object} and set it on the {other}',
        'set the {object} down on top of the {other}',
        'the {object} belongs on top of the {other}',
        'please stack the {object} on top of the {other}',
        'could you put the {object} on the {other}',
    ),
    'next_to': (
        'move the {object} next to the {other}',
        'put the {object} beside the {other}',
        'place the {object} next to the {other}',
        'set the {object} down close to the {other}',
        'bring the {object} over to the {other}',
        'the {object} should stand next to the {other}',
        'please put the {object} right beside the {other}',
        'could you move the {object} near the {other}',
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
        'hand the {object} from the {giver} hand to the {taker} hand',
        'pass the {object} from your {giver} hand to your {taker} hand',
        'pick up the {object} with the {giver} hand and give it to the {taker} hand',
        'take the {object} in the {giver} hand, then hand it over to the {taker} hand',
        'use the {giver} hand to pass the {object} to the {taker} hand',
        'grab the {object} with the {giver} arm and pass it to the {taker} arm',
        'give the {object} to your {taker} hand, picking it up with the {giver} one',
        'please move the {object} over from the {giver} to the {taker} hand',
    ),
    'fetch': (
        'fetch the {object} from the second table',
        'drive to the second table and fetch the {object}',
        'get the {object} from the other table',
        'go to the other table and bring back the {object}',
        'bring me the {object} from the second table',
        'the {object} is on the second table, bring it here',
        'please go and get the {object} from the other table',
        'drive over to the second table and bring the {object} to this one',
    ),
}
WORDINGS['bus'] = WORDINGS['bus_table']
WORDINGS['demo'] = WORDINGS['put_in_bin']


def word(task: str, rng: np.random.Generator, **names: str) -> str:
    """One wording of a task, drawn at random, with its names filled in."""
    return str(rng.choice(WORDINGS[task])).format(**names)
