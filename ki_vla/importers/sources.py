"""Where a checkpoint is: a folder, a Hugging Face id (`lerobot/pi05_base`), or a public bucket (`gs://openpi-assets/...`).

What is fetched is kept and not fetched again; what was cut off goes on where it ended. Provenance says what was asked
for, and which revision came: a commit of the hub, or the sha256 of a bucket's list of files.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ki_common.errors import first_line
from ki_vla.errors import VlaError

HUB_ID = re.compile(r'(?P<id>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?')
BUCKET_URL = re.compile(r'gs://(?P<bucket>[a-z0-9][a-z0-9._-]+)/(?P<prefix>[\w./-]+?)/?')
STORAGE = 'https://storage.googleapis.com'
BLOCK = 4 * 2**20
TIMEOUT_S = 60
# What an import reads; a checkpoint's optimizer state and example pictures are left where they are.
CHECKPOINT_FILES = ('*.safetensors', '*.safetensors.index.json', '*.json', 'assets/**', 'params/**')
TOKENIZER_FILES = ('tokenizer.json',)
Progress = Callable[[int, int, str], None]  # bytes that are here, bytes in all, the file in hand


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint that is here.

    Attributes:
        folder: where its files are; a file, where one was named.
        named: what was asked for.
        revision: which version that was; None for files that were here.
    """

    folder: Path
    named: str
    revision: str | None = None

    @property
    def known_name(self) -> str | None:
        """The name that openpi gives a checkpoint of its own bucket."""
        url = BUCKET_URL.fullmatch(self.named)
        if url is None or url['bucket'] != 'openpi-assets':
            return None
        return url['prefix'].removesuffix('/params').rpartition('/')[2]

    def provenance(self) -> dict[str, str]:
        """For the bundle."""
        return {'source': self.named} | ({} if self.revision is None else {'revision': self.revision})


def find_source(
    named: str | Path,
    files: Sequence[str] = CHECKPOINT_FILES,
    *,
    cache: Path | None = None,
    progress: Progress | None = None,
    storage: str | None = None,
) -> CheckpointSource:
    """A checkpoint or a tokenizer, fetched where it is not here.

    Args:
        named: a folder or file; an id of the Hugging Face hub, with `@REVISION` for another than `main`; or `gs://...`.
        files: patterns of what is fetched.
        cache: where files of a bucket are kept; `~/.cache/ki_stack/checkpoints`, or what KI_CACHE names, unless given.
            The hub's own cache is used for the hub.
        progress: told how far a bucket's files are.
        storage: who serves buckets; what STORAGE_EMULATOR_HOST names, or Google, unless given.

    Raises:
        VlaError: there is no such thing, no network, or no room; the sentence says which files to bring by hand.
    """
    text = str(named)
    url = BUCKET_URL.fullmatch(text)
    if url is not None:
        kept = cache or Path(os.environ.get('KI_CACHE', '~/.cache/ki_stack')).expanduser() / 'checkpoints'
        host = storage or os.environ.get('STORAGE_EMULATOR_HOST', STORAGE)
        return _from_bucket(text, url['bucket'], url['prefix'], files, kept, progress or (lambda *_: None), host)
    if Path(text).exists():
        return CheckpointSource(Path(text), Path(text).name)
    hub = HUB_ID.fullmatch(text)
    if hub is None or '://' in text:
        raise VlaError(f'{text}: no such file or folder, no id of the Hugging Face hub (OWNER/NAME), and no gs://... .')
    return _from_hub(hub['id'], hub['revision'], files)


def _from_hub(name: str, revision: str | None, files: Sequence[str]) -> CheckpointSource:
    """A snapshot of a repository of the hub, by its own client, which resumes and shows how far it is."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        folder = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=list(files)))
    except errors.GatedRepoError as error:
        raise VlaError(
            f'{name}: its owners ask for your consent first: open https://huggingface.co/{name}, accept, then '
            '`hf auth login`, and import again.'
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise VlaError(f'{name}: no such folder here, and no such repository on the hub (or it is private).') from error
    except errors.RevisionNotFoundError as error:
        raise VlaError(f'{name}: the hub has no revision {revision!r} of it; write NAME@REVISION.') from error
    except (OSError, errors.HfHubHTTPError, errors.LocalEntryNotFoundError) as error:
        raise VlaError(
            f'{name}: no such folder here, and the hub cannot be reached ({first_line(error)}). Where there is a '
            f'network, `hf download {name}{"" if revision is None else " --revision " + revision} --local-dir FOLDER`; '
            f'bring {", ".join(files)}, and give FOLDER.'
        ) from error
    return CheckpointSource(folder, name, folder.name)


def _from_bucket(
    named: str, bucket: str, prefix: str, files: Sequence[str], cache: Path, progress: Progress, storage: str
) -> CheckpointSource:
    """Files of a public bucket, by its JSON interface."""
    prefix = prefix.removesuffix('/params')
    try:
        objects = [each for each in _listed(storage, bucket, f'{prefix}/') if _wanted(each['name'], prefix, files)]
        if not objects:
            raise VlaError(f'{named}: the bucket {bucket} has no files of a checkpoint there.')
        folder = cache / bucket / prefix
        total = sum(int(each['size']) for each in objects)
        _check_room(cache, total - sum(_bytes_here(folder, prefix, each) for each in objects), named)
        done = 0
        for each in objects:
            path = folder / each['name'].removeprefix(f'{prefix}/')
            for more in _download(storage, bucket, each, path):
                progress(done + more, total, path.name)
            done += int(each['size'])
    except (urllib.error.URLError, TimeoutError, ConnectionError, json.JSONDecodeError, KeyError) as error:
        raise VlaError(
            f'{named}: the bucket cannot be read ({first_line(error)}). Where there is a network, `gsutil -m cp -r '
            f'gs://{bucket}/{prefix} .`; bring params/ and assets/, and give the folder. What came is kept.'
        ) from error
    listing = ''.join(f'{each["name"]} {each["generation"]}\n' for each in objects)
    return CheckpointSource(folder, named, hashlib.sha256(listing.encode()).hexdigest())


def _listed(storage: str, bucket: str, prefix: str) -> Iterator[dict[str, Any]]:
    """Every object below a prefix: name, size, md5Hash, generation."""
    page = ''
    while True:
        query = urllib.parse.urlencode({'prefix': prefix} | ({'pageToken': page} if page else {}))
        with urllib.request.urlopen(f'{storage}/storage/v1/b/{bucket}/o?{query}', timeout=TIMEOUT_S) as answer:
            said = json.load(answer)
        yield from said.get('items', [])
        page = said.get('nextPageToken', '')
        if not page:
            return


def _wanted(name: str, prefix: str, files: Sequence[str]) -> bool:
    """Whether a name fits a pattern; one that leads out of the folder fits none."""
    path = name.removeprefix(f'{prefix}/')
    if path.endswith('/') or '..' in path.split('/'):
        return False
    return any(path.startswith(f[:-2]) if f.endswith('/**') else Path(path).match(f) and '/' not in path for f in files)


def _bytes_here(folder: Path, prefix: str, entry: dict[str, Any]) -> int:
    path = folder / entry['name'].removeprefix(f'{prefix}/')
    return path.stat().st_size if path.is_file() else 0


def _check_room(cache: Path, needed: int, named: str) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free
    if needed > free:
        raise VlaError(
            f'{named}: {needed / 1e9:.1f} GB are to come and {cache} has {free / 1e9:.1f} GB left; free some, or name '
            'another folder in KI_CACHE.'
        )


def _download(storage: str, bucket: str, entry: dict[str, Any], path: Path) -> Iterator[int]:
    """One object, resumed where it was cut off, and held to its size and md5; yields how many bytes are here."""
    size, digest = int(entry['size']), entry.get('md5Hash')
    if path.is_file() and path.stat().st_size == size:
        yield size
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another generation of the object is other bytes: what is here of an older one is not gone on with.
    partial = path.with_name(f'{path.name}.{entry["generation"]}.partial')
    begun = partial.stat().st_size if partial.is_file() else 0
    if begun < size:
        quoted = urllib.parse.quote(entry['name'], safe='')
        where = f'{storage}/storage/v1/b/{bucket}/o/{quoted}?alt=media&generation={entry["generation"]}'
        request = urllib.request.Request(where, headers={'Range': f'bytes={begun}-'} if begun else {})
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            mode = 'ab' if begun and answer.status == 206 else 'wb'
            with partial.open(mode) as file:
                while block := answer.read(BLOCK):
                    file.write(block)
                    yield file.tell()
    found = partial.stat().st_size
    if found < size:
        raise ConnectionError(f'{path.name} was cut off at {found} of {size} bytes; import again to go on')
    if digest is not None and _md5(partial) != digest:
        partial.unlink()
        raise VlaError(f'{path}: came damaged (another md5 than the bucket says); import again.')
    partial.replace(path)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with path.open('rb') as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return base64.b64encode(digest.digest()).decode()
