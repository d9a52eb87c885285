"""Pictures with words: JSONL files beside images, and WebDataset tar shards. No action in them (M_act = 0).

JSONL, one object a line: {"image": "a.jpg" | ["a.jpg", ...], "prompt": "...", "answer": "...", "kind": "vqa"};
`question` is another word for prompt, and captions may leave it out. `things` and `point` may say what the picture
shows and where the thing is that is asked for (`training.samples.things`). Boxes are <loc> tokens in the answer, as
`ki_vla.tokens.loc` writes them. WebDataset: members of one sample share their name up to the first dot; a picture
(jpg, png) and a json with the fields above, or a txt with the answer alone.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tarfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_bags.problems import Problems
from ki_robot.errors import Rejected
from ki_robot.messages.images import decode_compressed
from training.errors import TrainingError
from training.samples.things import PlaceInView, ShownThing, parse_point, parse_things

CAPTION = 'caption en'
PICTURES = ('jpg', 'jpeg', 'png')
MAX_LINE = 1 << 20
MAX_MEMBER = 64 << 20
MAX_SKIPS = 64


@dataclass(frozen=True)
class VlmSample:
    """Pictures, what is asked, and what is to be said; and, where known, what the first picture shows, and where."""

    images: tuple[NDArray[np.uint8], ...]
    question: str
    answer: str
    kind: str
    things: tuple[ShownThing, ...] | None = None
    point: PlaceInView = None

    @property
    def points(self) -> tuple[PlaceInView, PlaceInView]:
        """As those of a sample with actions: nothing is put on or beside anything."""
        return self.point, None


@dataclass(frozen=True)
class _Row:
    """Where one sample lies: a line or sample of a file, and image files, or (offset, length) in the shard."""

    file: Path
    place: str
    images: tuple[Any, ...]
    question: str
    answer: str
    kind: str
    things: tuple[ShownThing, ...] | None = None
    point: PlaceInView = None


class VlmDataset:
    """Random access to samples of JSONL files and tar shards; bad lines, members and pictures are counted, not fatal.

    Args:
        paths: .jsonl files, .tar shards, or folders that hold them.

    Raises:
        TrainingError: A path does not exist, or no usable sample is left.
    """

    def __init__(self, paths: Iterable[str | Path]) -> None:
        self.problems = Problems()
        self._rows: list[_Row] = []
        self._lock = threading.Lock()
        self._files = [file for path in paths for file in _files(Path(path))]
        for file in self._files:
            rows = _jsonl(file, self.problems) if file.suffix == '.jsonl' else _shard(file, self.problems)
            self._rows += rows
        self._require()

    def only(self, kinds: Iterable[str]) -> VlmDataset:
        """The samples of some kinds; what is wrong with them is counted here as well as there.

        Raises:
            TrainingError: There are none.
        """
        wanted, view = set(kinds), copy.copy(self)
        view._rows = [row for row in self._rows if row.kind in wanted]
        view._require(f' of kind {" or ".join(sorted(wanted))}')
        view._lock = self._lock  # the problems are shared, too
        return view

    def drop(self, misfit: Callable[[str, str, int], str]) -> None:
        """Leaves out, and counts, the samples that a model cannot take.

        Args:
            misfit: says why not, from question, answer and number of pictures; empty where it can.

        Raises:
            TrainingError: No sample is left.
        """
        kept = []
        for row in self._rows:
            why = misfit(row.question, row.answer, len(row.images))
            if why:
                text = f'{row.file}: {row.place} does not fit the model: {why}'
                self.problems.add(row.file, '', 'does_not_fit', text)
            else:
                kept.append(row)
        self._rows = kept
        self._require(' that fits the model')

    def _require(self, which: str = '') -> None:
        if not self._rows:
            told = ' '.join(problem.text for problem in list(self.problems)[:3])
            files = ', '.join(map(str, self._files)) or 'no files'
            raise TrainingError(f'no usable sample{which} in {files}. {told}'.strip())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> VlmSample:
        """The sample at a position; where a picture does not decode, the next one that does, counted in `problems`.

        Raises:
            TrainingError: Too many do not decode.
        """
        for skip in range(MAX_SKIPS):
            row = self._rows[(position + skip) % len(self._rows)]
            try:
                images = tuple(_picture(row, where) for where in row.images)
                return VlmSample(images, row.question, row.answer, row.kind, row.things, row.point)
            except (Rejected, OSError) as error:
                with self._lock:
                    where = row.file if row.file.suffix == '.tar' else row.images[0]
                    self.problems.add(where, 'image', 'undecodable', f'{where}: {error}')
        raise TrainingError(
            f'{MAX_SKIPS} pictures in a row do not decode; the last is {self._rows[position].images[0]}.'
        )

    @property
    def kinds(self) -> dict[str, int]:
        """How many samples there are of each kind."""
        found: dict[str, int] = {}
        for row in self._rows:
            found[row.kind] = found.get(row.kind, 0) + 1
        return found

    @property
    def thing_words(self) -> dict[str, set[str]]:
        """Every word that the files say of things, by label."""
        found: dict[str, set[str]] = {}
        for row in self._rows:
            for thing in row.things or ():
                for label, word in thing.words.items():
                    found.setdefault(label, set()).add(word)
        return found

    @property
    def hash(self) -> str:
        """sha256 over texts, kinds and the names of pictures, in order; wherever the files lie."""
        digest = hashlib.sha256()
        for row in self._rows:
            names = [each.name if isinstance(each, Path) else each for each in row.images]
            digest.update(json.dumps([row.question, row.answer, row.kind, names]).encode())
        return digest.hexdigest()

    def texts(self, most: int) -> list[tuple[str, str]]:
        """Question and answer of up to `most` samples, spread evenly over all of them."""
        step = max(1, len(self._rows) // max(most, 1))
        return [(row.question, row.answer) for row in self._rows[::step][:most]]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, '_lock': None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise TrainingError(f'{path} does not exist; name a .jsonl file, a .tar shard, or a folder of them.')
    if path.is_dir():
        found = sorted(each for each in path.rglob('*') if each.suffix in ('.jsonl', '.tar'))
        if not found:
            raise TrainingError(f'{path} holds neither .jsonl files nor .tar shards.')
        return found
    if path.suffix not in ('.jsonl', '.tar'):
        raise TrainingError(f'{path} is neither a .jsonl file nor a .tar shard.')
    return [path]


def _jsonl(file: Path, problems: Problems) -> list[_Row]:
    rows = []
    with file.open('rb') as stream:
        number = 0
        while line := stream.readline(MAX_LINE + 1):
            number += 1
            where = f'line {number}'
            if len(line) > MAX_LINE:
                problems.add(file, '', 'too_long', f'{file}: {where} has more than {MAX_LINE} bytes')
                while line and not line.endswith(b'\n'):
                    line = stream.readline(MAX_LINE)
                continue
            if not line.strip():
                continue
            try:
                data = json.loads(line)
                names = data['image'] if isinstance(data, dict) else None
                names = [names] if isinstance(names, str) else names
                if not isinstance(names, list):
                    raise TypeError('image is no file name, nor a list of them')
                row = _row(file, where, data, tuple(_beside(file, name) for name in names))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                reason = f'no field {error}' if isinstance(error, KeyError) else str(error)
                problems.add(file, '', 'bad_line', f'{file}: {where} cannot be used: {reason}')
                continue
            missing = [image for image in row.images if not image.is_file()]
            if missing:
                problems.add(file, 'image', 'missing_image', f'{file}: {where} names {missing[0]}, which is not there')
                continue
            rows.append(row)
    return rows


def _beside(file: Path, name: Any) -> Path:
    """A picture named by a line; a name must not lead out of the folder of its file."""
    inside = PurePosixPath(name)
    if inside.is_absolute() or '..' in inside.parts:
        raise ValueError(f'the image {name!r} lies outside of {file.parent}')
    return file.parent / inside


def _row(file: Path, place: str, data: dict[str, Any], images: tuple[Any, ...]) -> _Row:
    answer = data['answer']
    question = data.get('prompt', data.get('question', CAPTION))
    kind = data.get('kind', 'vqa' if 'prompt' in data or 'question' in data else 'caption')
    for name, value in (('answer', answer), ('question', question), ('kind', kind)):
        if not isinstance(value, str) or not value.strip():
            raise ValueError(f'{name} is {value!r}, not a text')
    if not images:
        raise ValueError('image is empty')
    things, point = parse_things(data.get('things')), parse_point(data.get('point'))
    return _Row(file, place, images, question, answer, kind, things, point)


def _shard(file: Path, problems: Problems) -> list[_Row]:
    """Samples of a tar shard; only headers and the small texts are read now."""
    rows: list[_Row] = []
    name = ''
    parts: dict[str, Any] = {}
    try:
        with tarfile.open(file, 'r:') as shard:
            for member in shard:
                if not member.isfile():
                    continue
                key, _, extension = member.name.partition('.')
                if '/' in extension:  # a dot in a folder's name
                    folder, _, last = member.name.rpartition('/')
                    key, _, extension = last.partition('.')
                    key = f'{folder}/{key}'
                if key != name:
                    _flush(file, name, parts, rows, problems)
                    name, parts = key, {}
                extension = extension.lower()
                if member.size > MAX_MEMBER:
                    problems.add(file, member.name, 'too_long', f'{file}: {member.name} has {member.size} bytes')
                elif extension in PICTURES:
                    parts.setdefault('images', []).append((member.offset_data, member.size))
                elif extension in ('json', 'txt'):
                    stream = shard.extractfile(member)
                    parts[extension] = stream.read() if stream is not None else b''
    except (tarfile.TarError, OSError, EOFError) as error:
        problems.add(file, '', 'damaged', f'{file} is damaged: {error}; what lies before the damage is used')
    _flush(file, name, parts, rows, problems)
    size = file.stat().st_size
    whole = [row for row in rows if all(offset + length <= size for offset, length in row.images)]
    if len(whole) < len(rows):
        problems.add(file, '', 'damaged', f'{file} was cut off', len(rows) - len(whole))
    return whole


def _flush(file: Path, name: str, parts: dict[str, Any], rows: list[_Row], problems: Problems) -> None:
    if not parts:
        return
    try:
        data = json.loads(parts['json']) if 'json' in parts else {'answer': parts['txt'].decode('utf-8')}
        rows.append(_row(file, f'sample {name}', data, tuple(parts.get('images', ()))))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f'no {error}' if isinstance(error, KeyError) else str(error)
        problems.add(file, '', 'bad_sample', f'{file}: sample {name} cannot be used: {reason}')


def _picture(row: _Row, where: Any) -> NDArray[np.uint8]:
    if isinstance(where, Path):
        data = np.fromfile(where, dtype=np.uint8)
    else:
        with row.file.open('rb', buffering=0) as stream:
            stream.seek(where[0])
            data = np.frombuffer(stream.read(where[1]), dtype=np.uint8)
    return decode_compressed(SimpleNamespace(data=data, format=''))
