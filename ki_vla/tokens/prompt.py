r"""The prompts.

The prompt of this model and of pi0.5 is `BOS Task: {text}, State: {bins};\nAction: `. That of pi0, and of a pi0.5 that
is not shown the state, is `BOS {text}\n`, and so is a question about pictures, as PaliGemma was trained on. A two-level
policy is first asked `BOS Task: {text}, State: {bins};\nSubtask: `; its answer follows the task when asked to act:
`BOS Task: {text}, Subtask: {answer}, State: {bins};\nAction: `. Training and inference use the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from ki_vla.errors import VlaError
from ki_vla.model.config import PromptState
from ki_vla.tokens.state import discretise, state_text
from ki_vla.tokens.tokenizer import TextTokenizer

Asks = Literal['Action', 'Subtask']


def clean(instruction: str) -> str:
    """One line without underscores and outer blanks: what the public checkpoints were trained on.

    Raises:
        VlaError: nothing is left.
    """
    text = instruction.strip().replace('_', ' ').replace('\n', ' ')
    if not text.strip():
        raise VlaError('the instruction is empty; say what the robot shall do.')
    return text


def action_prompt(
    tokenizer: TextTokenizer,
    instruction: str,
    state_S: np.ndarray,
    state_repr: PromptState = 'text',
    *,
    limit: int,
    lowest_bin: int = 0,
    truncate: bool = False,
    subtask: str = '',
    asks: Asks = 'Action',
) -> list[int]:
    """Ids of the prompt that asks for an action, or for what to do next.

    Args:
        tokenizer: text and layout.
        instruction: what to do.
        state_S: normalised, unpadded state; unused for the continuous representation, whose token the model adds.
        state_repr: how the state is said.
        limit: the most tokens the model takes.
        lowest_bin: what the text says of a state below its range; see `discretise`.
        truncate: leave out words at the end of an instruction that is too long. The state and the words around it stay.
        subtask: what the policy said it would do next; empty: nothing.
        asks: what for.

    Raises:
        VlaError: the prompt is longer than `limit` and may not be, or cannot be, shortened.
    """
    bos = [tokenizer.vocabulary.bos]

    next_words = f', Subtask: {subtask}' if subtask else ''

    def build(text: str) -> list[int]:
        task = f'Task: {text}{next_words}'
        if state_repr == 'text':
            return bos + tokenizer.encode(f'{task}, State: {state_text(state_S, lowest_bin)};\n{asks}: ')
        if state_repr == 'special':
            bins: list[int] = tokenizer.vocabulary.state_ids(discretise(state_S)).tolist()
            return bos + tokenizer.encode(f'{task}, State: ') + bins + tokenizer.encode(f';\n{asks}: ')
        if state_repr == 'continuous':
            return bos + tokenizer.encode(f'{task};\n{asks}: ')
        raise VlaError(f"state_repr must be 'text', 'special' or 'continuous', got {state_repr!r}.")

    return _fit(build, clean(instruction), limit, truncate)


def plain_prompt(tokenizer: TextTokenizer, text: str, *, limit: int, truncate: bool = False) -> list[int]:
    r"""Ids of `BOS {text}\n`: pi0's prompt and a question about pictures. The newline is always a token of its own."""
    end = tokenizer.encode('\n')
    return _fit(lambda part: [tokenizer.vocabulary.bos, *tokenizer.encode(part), *end], clean(text), limit, truncate)


def _fit(build: Callable[[str], list[int]], text: str, limit: int, truncate: bool) -> list[int]:
    """The prompt around `text`, shortened word by word where that was asked for."""
    ids = build(text)
    full = len(ids)
    while len(ids) > limit and truncate and ' ' in text:
        text = text.rsplit(' ', 1)[0]
        ids = build(text)
    if len(ids) > limit:
        raise VlaError(
            f'the prompt has {full} tokens and the model takes {limit}: shorten the instruction or raise max_prompt.'
        )
    return ids
