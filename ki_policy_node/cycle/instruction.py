"""What an instruction must be before a policy gets it."""

from __future__ import annotations

import uuid

from ki_policy_node.errors import NodeError
from ki_robot.messages.arrays import MAX_ID

MAX_INSTRUCTION = 500


def checked_instruction(text: str, instruction_id: str) -> tuple[str, str]:
    """An instruction as the policy may get it, with an id.

    Raises:
        NodeError: empty, too long, or with characters that are no text.
    """
    if len(instruction_id) > MAX_ID or not instruction_id.isprintable():
        raise NodeError(
            f'The id of the instruction begins with {instruction_id[:20]!r}; write at most {MAX_ID} printable '
            'characters, or leave it empty.'
        )
    text = text.strip()
    if not text:
        raise NodeError('The instruction is empty; say what to do, such as "put the red cup in the bowl".')
    if len(text) > MAX_INSTRUCTION:
        raise NodeError(f'The instruction has {len(text)} characters; say it in at most {MAX_INSTRUCTION}.')
    if not text.isprintable():
        strange = next(character for character in text if not character.isprintable())
        raise NodeError(f'The instruction contains {strange!r}, which is no text; write it in plain words on one line.')
    return text, instruction_id or uuid.uuid4().hex[:12]
