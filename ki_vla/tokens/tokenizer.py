"""Text to ids and back: the Gemma tokenizer from a local file, or a small one trained on given text.

Nothing is ever downloaded. Both kinds are one class over the `tokenizers` library; both read a control token that is
spelled out in a text ("<eos>") as the plain characters it is made of, so that an instruction cannot end the prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from ki_common.files import read_json
from ki_vla.errors import VlaError
from ki_vla.tokens.bpe import read_bpe
from ki_vla.tokens.vocabulary import (
    GEMMA_BAR,
    GEMMA_TEXT_SIZE,
    IMAGE_TOKEN,
    SEG_TOKENS,
    Vocabulary,
    gemma_vocabulary,
    small_vocabulary,
)

TOKENIZER_FILE = 'tokenizer.json'
VOCABULARY_FILE = 'vocabulary.json'
CONTROL = ('<pad>', '<eos>', '<bos>', '<unk>')


@dataclass(frozen=True)
class TextTokenizer:
    """A `tokenizers.Tokenizer` and the layout of the vocabulary around its text."""

    tokenizer: Tokenizer
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        """Read spelled-out control tokens as characters; the library keeps this setting in no file and no pickle."""
        self.tokenizer.encode_special_tokens = True

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[Tokenizer, Vocabulary]]:
        """Pickle by way of the constructor, for data loader workers."""
        return TextTokenizer, (self.tokenizer, self.vocabulary)

    def encode(self, text: str) -> list[int]:
        """Text -> ids, without BOS and EOS; <loc0000> and the like become one id each.

        Raises:
            VlaError: the text is not a string, or the tokenizer produced a control id or one outside the table.
        """
        if not isinstance(text, str):
            raise VlaError(f'text to tokenise must be a string, got {type(text).__name__}.')
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        for token in ids:
            if self.vocabulary.is_control(token) or token >= self.vocabulary.size:
                raise VlaError(f'tokenizer turned a text into the id {token}, which text may not contain: {text!r}.')
        return list(ids)

    def decode(self, ids: Iterable[int]) -> str:
        """Ids -> text; pad, BOS and EOS are left out.

        Raises:
            VlaError: an id stands for no text (in the small layout: a state or action token).
        """
        kept = [int(i) for i in ids if not self.vocabulary.is_control(int(i))]
        known = self.tokenizer.get_vocab_size()
        for token in kept:
            if not 0 <= token < known:
                raise VlaError(f'token id {token} stands for no text; the tokenizer knows 0..{known - 1}.')
        return self.tokenizer.decode(kept, skip_special_tokens=False)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and vocabulary.json into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / TOKENIZER_FILE))
        text = json.dumps(self.vocabulary.to_dict(), indent=2, sort_keys=True) + '\n'
        (folder / VOCABULARY_FILE).write_text(text, encoding='utf-8')


def load_tokenizer(folder: str | Path) -> TextTokenizer:
    """Read what `save` wrote."""
    folder = Path(folder)
    vocabulary = Vocabulary.parse(read_json(folder / VOCABULARY_FILE, VlaError), str(folder / VOCABULARY_FILE))
    tokenizer = _read(folder / TOKENIZER_FILE)
    if tokenizer.token_to_id('<eos>') != vocabulary.eos or tokenizer.token_to_id('|') != vocabulary.bar:
        raise VlaError(f'{folder}: {TOKENIZER_FILE} and {VOCABULARY_FILE} disagree about the ids of <eos> and |.')
    return TextTokenizer(tokenizer, vocabulary)


def load_gemma(path: str | Path) -> TextTokenizer:
    """A Gemma or PaliGemma tokenizer.json (or the folder that holds it), in PaliGemma's layout.

    A plain Gemma file knows no <loc0000>..<loc1023>, <seg000>..<seg127>, <image>: they are appended as PaliGemma does.

    Raises:
        VlaError: the file is missing, or is the tokenizer of another model (Gemma 3 has 262145 tokens).
    """
    path = Path(path)
    path = path / TOKENIZER_FILE if path.is_dir() else path
    tokenizer = _read(path)
    extra = [f'<loc{i:04d}>' for i in range(1024)] + [f'<seg{i:03d}>' for i in range(SEG_TOKENS)]
    if tokenizer.get_vocab_size() == GEMMA_TEXT_SIZE:
        tokenizer.add_tokens([AddedToken(name, normalized=False, special=False) for name in extra])
        tokenizer.add_special_tokens([AddedToken('<image>', normalized=False, special=True)])
    expected = {'<pad>': 0, '<eos>': 1, '<bos>': 2, '|': GEMMA_BAR, '<image>': IMAGE_TOKEN}
    expected |= {name: GEMMA_TEXT_SIZE + i for i, name in enumerate(extra)}
    for name, token in expected.items():
        if tokenizer.token_to_id(name) != token:
            raise VlaError(
                f'{path}: not the Gemma/PaliGemma tokenizer ({tokenizer.get_vocab_size()} tokens): '
                f'{name!r} has the id {tokenizer.token_to_id(name)}, not {token}.'
            )
    return TextTokenizer(tokenizer, gemma_vocabulary())


def train_tokenizer(
    texts: Iterable[str],
    *,
    size: int,
    text_size: int = 512,
    loc_bins: int = 64,
    action_size: int = 256,
    split_digits: bool = True,
) -> TextTokenizer:
    """A byte-level BPE trained on given text: no character is unknown to it.

    Args:
        texts: sentences as they will be written in prompts and answers.
        size: rows of the model's embedding table.
        text_size: the most text tokens to learn; 260 are bytes and control tokens.
        loc_bins: how many <loc> tokens; boxes are quantised to so many steps.
        action_size: rows reserved for action tokens.
        split_digits: every digit its own token, as in Gemma; otherwise numbers merge, which shortens a text state.

    Raises:
        VlaError: no text was given, or the parts do not fit in `size`.
    """
    texts = list(texts)
    if not texts:
        raise VlaError('a tokenizer needs text to be trained on; none was given.')
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if text_size < len(CONTROL) + len(alphabet):
        raise VlaError(f'text_size {text_size} is below the {len(CONTROL) + len(alphabet)} byte and control tokens.')
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    by_digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_digits, by_bytes] if split_digits else [by_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=text_size, special_tokens=list(CONTROL), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    learned, bar = tokenizer.get_vocab_size(), tokenizer.token_to_id('|')
    assert bar is not None  # a byte, so in the initial alphabet
    tokenizer.add_tokens([AddedToken(f'<loc{i:04d}>', normalized=False, special=False) for i in range(loc_bins)])
    vocabulary = small_vocabulary(size, learned, bar, loc_bins=loc_bins, action_size=action_size)
    return TextTokenizer(tokenizer, vocabulary)


def _read(path: Path) -> Tokenizer:
    """A tokenizer.json, or an error that names it."""
    try:
        tokenizer = read_bpe(path.read_text(encoding='utf-8'), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise VlaError(f'{path}: cannot be read ({error}).') from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
