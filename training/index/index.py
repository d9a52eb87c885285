"""The index: recordings once read become episodes that can be sampled at random; read-only, hashed, never half-written.

Layout of the folder::

    index.json                 contract, options, name and hash of the next
    recordings-HASH.jsonl      a line a recording: path, signature, key, what its entry holds; all that opening reads
    bags/KEY/entry.json        what was found: episodes, streams, problems; sha256 of every file beside it
    bags/KEY/episode_000.npz   arrays of one episode (see training.index.episodes.Episode)
    bags/KEY/CAMERA.images     JPEG or PNG bytes, one after the other; arrays hold offset and length

KEY hashes the recording, the contract and the options: a recording is read again only when one of them has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ki_bags.errors import BagError
from ki_bags.problems import Problem, Problems
from ki_bags.reader import find_bags, open_bag
from ki_bags.storage import has_wal, wal_of
from ki_common.errors import KiError
from ki_common.files import atomic_file, atomic_folder, remove_leftovers, sha256_of, write_text
from ki_common.memory import no_garbage
from ki_common.parallel import run_all
from ki_robot.contract.contract import Contract
from ki_robot.errors import Rejected
from training.errors import TrainingError
from training.index.episodes import IndexOptions, Runs, episodes_of
from training.index.pieces import (
    CLUSTER_PIECE_BYTES,
    PIECE_BYTES,
    PieceJob,
    ReadPiece,
    joined,
    pieces_of,
    read_piece,
)
from training.index.stored_images import decode_stored
from training.index.streams import collect, judge, stream_rates

FORMAT = 5  # another one also where the same recording is read otherwise: then nothing old may stay
INDEX = 'index.json'
ENTRY = 'entry.json'
RECORDINGS = 'recordings-{}.jsonl'
READ_ONLY = stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class EpisodeInfo:
    """One episode of an index: enough to choose steps from it without a look at its arrays.

    Attributes:
        runs: Stretches of steps that can be learned from, as (first, one after the last).
        human: Stretches of steps that a human drove.
    """

    file: str
    steps: int
    start_ns: int
    outcome: str
    texts: tuple[str, ...]
    runs: Runs
    human: Runs = ()

    @property
    def usable(self) -> int:
        """How many steps can be learned from."""
        return sum(last - first for first, last in self.runs)

    @staticmethod
    def parse(data: dict[str, Any]) -> EpisodeInfo:
        """What an entry holds of it.

        Raises:
            KeyError, TypeError, ValueError: It is none.
        """
        runs, human = (tuple((int(first), int(last)) for first, last in data[name]) for name in ('runs', 'human'))
        return EpisodeInfo(**{**data, 'texts': tuple(data['texts']), 'runs': runs, 'human': human})


@dataclass(frozen=True)
class Entry:
    """One recording of an index; without episodes when it could not be used, and then `problems` says why."""

    path: str
    key: str
    sha256: str
    folder: Path
    episodes: tuple[EpisodeInfo, ...]
    streams: dict[str, dict[str, float]]
    problems: tuple[Problem, ...]
    files: dict[str, str]
    messages: int


@dataclass(frozen=True)
class Index:
    """An index on disk."""

    folder: Path
    contract: Contract
    options: dict[str, Any]
    entries: tuple[Entry, ...]

    @property
    def hash(self) -> str:
        """sha256 over every recording, the contract and the options: what a trained model names as its data."""
        text = json.dumps([self.contract.hash, self.options, sorted(entry.sha256 for entry in self.entries)])
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def problems(self) -> Problems:
        """Everything that is wrong with any recording."""
        return Problems(problem for entry in self.entries for problem in entry.problems)

    @cached_property
    def episodes(self) -> tuple[tuple[Entry, EpisodeInfo], ...]:
        """All episodes, in the order of recordings."""
        with no_garbage():
            return tuple((entry, episode) for entry in self.entries for episode in entry.episodes)


def index_bags(
    source: Path,
    contract: Contract,
    out: Path,
    options: IndexOptions | None = None,
    workers: int = 1,
    ray: str = '',
    progress: Progress | None = None,
) -> Index:
    """Indexes every recording at or below `source` into the folder `out`, reading only what has changed.

    Damaged or unsuitable recordings become entries without episodes (or with what could be salvaged); they never
    end the run.

    Raises:
        TrainingError: No recording there, options that name nothing of the contract, or `out` cannot be written.
    """
    options = options or IndexOptions()
    options.check(contract)
    paths = [path for path in find_bags(source) if out.resolve() not in path.resolve().parents]
    if not paths:
        raise TrainingError(f'{source} holds no recording (rosbag2 folder, .mcap, .db3 or .bag).')
    try:
        (out / 'bags').mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f'{out} cannot be made: {error.strerror}; choose another folder with --out.') from error
    remove_leftovers(out / 'bags')
    known = _known(out, contract, options)
    rows: dict[int, dict[str, Any]] = {}
    jobs, numbers = [], []
    for number, path in enumerate(paths):
        row: dict[str, Any] = {'path': str(path), 'signature': signature(path)}
        before = known.get(str(path))
        if before is not None and before['signature'] == row['signature'] and _may_stay(out, before):
            rows[number] = before
            continue
        job = {'path': str(path), 'out': str(out), 'contract': contract.to_dict(), 'options': options.to_dict()}
        jobs.append(job)
        numbers.append((number, row))
    done = len(rows)
    for position, result in _indexed(jobs, [_size(row) for _, row in numbers], out, workers, ray):
        number, row = numbers[position]
        if isinstance(result, TrainingError):
            raise result
        if isinstance(result, Exception):
            result = _give_up(jobs[position], f'the process that read it died ({type(result).__name__}: {result})')
        rows[number] = {**row, **result}
        done += 1
        if progress is not None:
            progress(done, len(paths), row['path'])
    ordered = [rows[number] for number in range(len(paths))]
    _write_index(out, contract, options, ordered)
    _prune(out, {row['key'] for row in ordered})
    return load_index(out)


def _size(row: dict[str, Any]) -> int:
    return sum(size for _, size, _ in row['signature'])


def _indexed(
    jobs: Sequence[dict[str, Any]], sizes: Sequence[int], out: Path, workers: int, ray: str
) -> Iterator[tuple[int, Any]]:
    """What `index_one` makes of each job; a long recording is read in pieces where several processes can."""
    many = (workers or os.cpu_count() or 1) if not ray else 0
    least = max(PIECE_BYTES, sum(sizes) // (2 * many)) if many else CLUSTER_PIECE_BYTES
    with contextlib.ExitStack() as cleanup:
        work: list[Any] = []
        of_job: list[int] = []
        read: dict[int, list[Any]] = {}
        for position, (job, size) in enumerate(zip(jobs, sizes, strict=True)):
            # Named as a partial, so that the next run removes what a killed one leaves.
            folder = out / 'bags' / f'.pieces-{position}.partial-{os.getpid()}'
            pieces = pieces_of(job, size // least, folder) if many != 1 and size >= 2 * least else []
            if pieces:
                read[position] = [None] * len(pieces)
                cleanup.callback(shutil.rmtree, folder, ignore_errors=True)
            work += pieces or [job]
            of_job += [position] * max(len(pieces), 1)
        begins = {position: of_job.index(position) for position in read}
        whole: list[int] = []
        for number, result in run_all(_read_or_index, work, workers, ray, capped=True):
            position = of_job[number]
            if position not in read:
                yield position, result
                continue
            read[position][number - begins[position]] = result
            if any(each is None for each in read[position]):
                continue
            if any(isinstance(each, Exception) for each in read[position]):
                whole.append(position)
            else:
                yield position, index_one(jobs[position], read.pop(position))
        for number, result in run_all(index_one, [jobs[position] for position in whole], workers, ray, capped=True):
            yield whole[number], result


def _read_or_index(job: dict[str, Any] | PieceJob) -> Any:
    if isinstance(job, PieceJob):
        try:
            return read_piece(job)
        except Exception as error:  # in this process, too: the recording is then read as a whole
            return BagError(f'a piece cannot be read: {type(error).__name__}: {error}')
    return index_one(job)


def _write_index(out: Path, contract: Contract, options: IndexOptions, rows: Sequence[dict[str, Any]]) -> None:
    """The two files of the whole; what there was before counts until the last moment.

    Raises:
        OSError: The disk takes no more, or an entry is gone.
    """
    digest, fresh = hashlib.sha256(), out / RECORDINGS.format('new')
    with atomic_file(fresh) as file:
        for row in rows:
            line = json.dumps(_with_entry(out, row), separators=(',', ':'), allow_nan=False).encode() + b'\n'
            digest.update(line)
            file.write(line)
    fresh = fresh.replace(out / RECORDINGS.format(digest.hexdigest()[:16]))
    about = {'contract': contract.to_dict(), 'options': options.to_dict()}
    _write_json(out / INDEX, {'format': FORMAT, **about, 'recordings': fresh.name, 'sha256': digest.hexdigest()})
    for each in out.glob(RECORDINGS.format('*')):
        if each != fresh:
            each.unlink()


def _with_entry(out: Path, row: dict[str, Any]) -> dict[str, Any]:
    """A row with what its entry holds; one that was read before has it."""
    if 'files' in row:
        return row
    entry = json.loads((out / 'bags' / row['key'] / ENTRY).read_bytes())
    del entry['seal']  # the hash of the whole file is in this row
    files = {**entry['files'], ENTRY: row['entry']}
    return {**entry, 'path': row['path'], 'signature': row['signature'], 'key': row['key'], 'files': files}


def index_one(job: dict[str, Any], pieces: Sequence[ReadPiece] = ()) -> dict[str, Any]:
    """Reads one recording; returns its key and the hash of its entry. Never raises for what is wrong with data.

    Args:
        job: The recording, contract, options, and the folder of the index.
        pieces: What was read of it already: all of it, in order.
    """
    contract, options = Contract.parse(job['contract']), IndexOptions(**job['options'])
    path, out = Path(job['path']), Path(job['out'])
    try:
        digest = hash_bag(path)
    except OSError as error:
        return _give_up(job, f'it cannot be read: {error}')
    key = _key(digest, contract, options)
    folder = out / 'bags' / key
    if not _is_as_written(folder / ENTRY):
        try:
            with atomic_folder(folder) as building:
                _build(path, digest, contract, options, building, pieces)
                for each in building.iterdir():
                    each.chmod(READ_ONLY)
        except OSError as error:
            raise TrainingError(f'{out} cannot be written: {error}; free space there and index again.') from error
    return {'key': key, 'entry': sha256_of(folder / ENTRY)}


def _build(
    path: Path,
    digest: str,
    contract: Contract,
    options: IndexOptions,
    folder: Path,
    pieces: Sequence[ReadPiece] = (),
) -> None:
    problems = Problems()
    episodes: list[EpisodeInfo] = []
    streams: dict[str, dict[str, float]] = {}
    messages = 0
    try:
        bag = open_bag(path)
        trusted = options.trust_log_time
        if pieces:
            found = joined(bag, pieces, folder, problems)
            judge(bag, contract, found, problems)
        else:
            found = collect(bag, contract, folder, problems, dict(options.remap), options.store, trusted)
        messages = found.messages
        streams = stream_rates(found)
        for number, episode in enumerate(episodes_of(found, contract, options, bag.custom, path, problems)):
            name = f'episode_{number:03d}.npz'
            # numpy's stubs take any keyword for its option `allow_pickle`
            np.savez(folder / name, **episode.arrays)  # type: ignore[arg-type]
            told = episode.start_ns, episode.outcome, episode.texts, episode.runs, episode.human
            episodes.append(EpisodeInfo(name, episode.steps, *told))
        for name, clock in found.clocks.items():
            streams.setdefault(name if name not in found.commands else f'command {name}', {}).update(clock.to_dict())
    except KiError as error:
        problems.add(path, '', 'refused', str(error))
    except OSError:
        raise
    except Exception as error:  # whatever bytes can do to a decoder: a recording never ends the run
        problems.add(path, '', 'refused', f'it cannot be read: {type(error).__name__}: {error}')
    if not episodes:
        for each in folder.glob('*.images'):
            each.unlink()
    files = {each.name: sha256_of(each) for each in sorted(folder.iterdir())}
    _write_entry(
        folder / ENTRY,
        {
            'path': str(path),
            'sha256': digest,
            'messages': messages,
            'episodes': [asdict(each) for each in episodes],
            'streams': streams,
            'problems': [each.to_dict() for each in problems],
            'files': files,
        },
    )


def _write_entry(path: Path, entry: dict[str, Any]) -> None:
    _write_json(path, {**entry, 'seal': _seal(entry)})


def _seal(entry: dict[str, Any]) -> str:
    """What an entry carries of itself, so that one that was changed is made anew and not taken over."""
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _is_as_written(path: Path) -> bool:
    try:
        entry = json.loads(path.read_bytes())
        return bool(entry.pop('seal') == _seal(entry))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _give_up(job: dict[str, Any], why: str) -> dict[str, Any]:
    """An entry for a recording that could not even be opened."""
    path, out = Path(job['path']), Path(job['out'])
    key = hashlib.sha256(f'{path} {why}'.encode()).hexdigest()[:16]
    folder = out / 'bags' / key
    folder.mkdir(parents=True, exist_ok=True)
    problem = Problem(str(path), '', 'refused', why)
    empty = {'path': str(path), 'sha256': '', 'messages': 0, 'episodes': [], 'streams': {}, 'files': {}}
    _write_entry(folder / ENTRY, {**empty, 'problems': [problem.to_dict()]})
    return {'key': key, 'entry': sha256_of(folder / ENTRY)}


def load_index(folder: Path) -> Index:
    """Opens an index; what is said of its recordings must be what was written.

    Raises:
        TrainingError: No index there, of another version, or one of its two files was changed or lost.
    """
    path = folder / INDEX
    try:
        top = read_top(folder)
        contract = Contract.parse(top['contract'], str(path))
        with no_garbage():
            entries = tuple(_entry_of(folder, row) for row in rows_of(folder, top))
        return Index(folder, contract, dict(top['options']), entries)
    except FileNotFoundError as error:
        raise TrainingError(f'{error.filename} does not exist; run `ki data index` first.') from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f'{path} cannot be read ({type(error).__name__}: {error}); run `ki data index`.') from error


def read_top(folder: Path) -> dict[str, Any]:
    """What index.json holds.

    Raises:
        TrainingError: It is of another version.
        OSError, ValueError, KeyError: It is not there, or no index.
    """
    path = folder / INDEX
    top: dict[str, Any] = json.loads(path.read_text(encoding='utf-8'))
    if top['format'] != FORMAT:
        raise TrainingError(f'{path} has format {top["format"]}, this is {FORMAT}; run `ki data index` again.')
    return top


def rows_of(folder: Path, top: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A row for each recording; only at its end it is known that they are those that were written.

    Raises:
        TrainingError: They are not.
    """
    path, digest = folder / Path(top['recordings']).name, hashlib.sha256()
    with path.open('rb') as file:
        for line in file:
            digest.update(line)
            yield json.loads(line)
    if digest.hexdigest() != top['sha256']:
        raise TrainingError(f'{path} was changed after it was written; remove it and run `ki data index`.')


def _entry_of(folder: Path, row: dict[str, Any]) -> Entry:
    return Entry(
        row['path'],
        row['key'],
        row['sha256'],
        folder / 'bags' / row['key'],
        tuple(EpisodeInfo.parse(each) for each in row['episodes']),
        row['streams'],
        tuple(Problem(**each) for each in row['problems']),
        row['files'],
        row['messages'],
    )


def check_index(index: Index, deep: bool = False, progress: Progress | None = None) -> Problems:
    """Every file of the index, and every recording that it is of, against its hash; `deep` decodes every image, too."""
    problems = Problems(index.problems)
    for number, entry in enumerate(index.entries):
        for name, digest in entry.files.items():
            file = entry.folder / name
            if not file.is_file():
                problems.add(entry.path, name, 'index_lost', f'{file} is gone; index again')
            elif sha256_of(file) != digest:
                problems.add(entry.path, name, 'index_changed', f'{file} was changed; remove it and index again')
        problems.extend(_source_changes(entry))
        if deep:
            problems.extend(_undecodable(index, entry))
        if progress is not None:
            progress(number + 1, len(index.entries), entry.path)
    return problems


def _source_changes(entry: Entry) -> Iterator[Problem]:
    """Whether a recording is still the one that was read: neither SQLite nor every MCAP carries checksums."""
    if not entry.sha256:
        return
    try:
        if hash_bag(Path(entry.path)) != entry.sha256:
            text = 'the recording is another one than was indexed: written to, or damaged; index again'
            yield Problem(entry.path, '', 'bag_changed', text)
    except OSError as error:
        yield Problem(entry.path, '', 'bag_gone', f'the recording cannot be compared ({error.strerror})')


def _undecodable(index: Index, entry: Entry) -> Iterator[Problem]:
    for episode in entry.episodes:
        with np.load(entry.folder / episode.file) as arrays:
            for camera in index.contract.camera_names:
                offsets, lengths = arrays[f'{camera}.offset'], arrays[f'{camera}.length']
                frames = {(int(o), int(n)) for o, n in zip(offsets, lengths, strict=True) if o >= 0}
                for offset, length in sorted(frames):
                    try:
                        decode_stored(entry.folder / f'{camera}.images', offset, length)
                    except (Rejected, OSError) as error:
                        yield Problem(entry.path, camera, 'undecodable', str(error))


def hash_bag(path: Path) -> str:
    """sha256 over name and content of every file of a recording."""
    files = _files_of(path)
    return hashlib.sha256(json.dumps([[each.name, sha256_of(each)] for each in files]).encode()).hexdigest()


def signature(path: Path) -> list[list[Any]]:
    """Name, size and time of every file of a recording: cheap, and another as soon as one was written to."""
    return [[each.name, each.stat().st_size, each.stat().st_mtime_ns] for each in _files_of(path)]


def _files_of(path: Path) -> list[Path]:
    if path.is_file():
        return [path, wal_of(path)] if has_wal(path) else [path]
    return sorted(each for each in path.iterdir() if each.is_file())


def _key(digest: str, contract: Contract, options: IndexOptions) -> str:
    text = json.dumps([FORMAT, digest, contract.hash, options.to_dict()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _known(out: Path, contract: Contract, options: IndexOptions) -> dict[str, dict[str, Any]]:
    """Rows of the index that is there, if it is of the same contract and options."""
    try:
        top = read_top(out)
        if top['options'] != options.to_dict() or Contract.parse(top['contract']).hash != contract.hash:
            return {}
        return {row['path']: row for row in rows_of(out, top)}
    except (OSError, ValueError, KeyError, TypeError, KiError):
        return {}


def _may_stay(out: Path, row: dict[str, Any]) -> bool:
    """Whether an entry is the one that was written, and was read: a share that was away for a moment is tried again."""
    path = out / 'bags' / row['key'] / ENTRY
    try:
        return sha256_of(path) == str(row['files'][ENTRY]) and bool(row['sha256'])
    except (OSError, ValueError, KeyError):
        return False


def _write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=1, allow_nan=False))


def _prune(out: Path, keep: set[str]) -> None:
    """Removes entries that no recording has any more."""
    for each in (out / 'bags').iterdir():
        if each.is_dir() and each.name not in keep and (each / ENTRY).is_file():
            shutil.rmtree(each, ignore_errors=True)
