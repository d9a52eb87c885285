"""Read a tokenizer.json from an untrusted source."""

from __future__ import annotations

import json

from tokenizers import Tokenizer

from ki_vla.errors import VlaError


def read_bpe(text: str, where: str) -> Tokenizer:
    """The byte-pair tokenizer in a tokenizer.json.

    What the library would answer with a crash of the process, not with an exception, is looked for first.

    Raises:
        VlaError: malformed, or not a byte-pair encoding.
    """
    try:
        model = json.loads(text)['model']
        kind, affixes = model['type'], (model.get('continuing_subword_prefix'), model.get('end_of_word_suffix'))
        plain = kind == 'BPE' and not any(affixes) and isinstance(model['vocab'], dict)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise VlaError(f'{where}: cannot be read as a tokenizer ({error}).') from error
    if not plain:
        raise VlaError(f'{where}: the tokenizer must be a byte-pair encoding without prefix and suffix.')
    try:
        return Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception
        raise VlaError(f'{where}: cannot be read as a tokenizer ({error}).') from error
