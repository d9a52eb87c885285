"""Where checkpoints come from: folders, the hub, a bucket that is cut off and goes on."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from typing import ClassVar

import pytest

from ki_vla.errors import VlaError
from ki_vla.importers.sources import find_source

FILES = {
    'checkpoints/pi05_libero/params/d/0': bytes(range(256)) * 40,
    'checkpoints/pi05_libero/params/_METADATA': b'{}',
    'checkpoints/pi05_libero/assets/physical-intelligence/libero/norm_stats.json': b'{"norm_stats": {}}',
    'checkpoints/pi05_libero/train_state/d/0': b'not wanted',
    'checkpoints/pi05_libero/../../evil.json': b'not wanted',
}


class Bucket(http.server.BaseHTTPRequestHandler):
    """The part of the public storage service that is used: listing, and ranges of an object."""

    cut_at: int | None = None
    damaged = False
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = urllib.parse.parse_qs(url.query)
        if 'alt' not in query:
            items = [
                {'name': n, 'size': str(len(d)), 'generation': '7',
                 'md5Hash': base64.b64encode(hashlib.md5(d).digest()).decode()}
                for n, d in FILES.items() if n.startswith(query['prefix'][0])
            ]  # fmt: skip
            half = items[:2] if 'pageToken' not in query else items[2:]
            body = json.dumps({'items': half} | ({'nextPageToken': 'more'} if 'pageToken' not in query else {}))
            self.answer(200, body.encode())
            return
        name = urllib.parse.unquote(url.path.rpartition('/')[2])
        data = FILES[name][::-1] if self.damaged else FILES[name]
        begin = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        type(self).asked.append(f'{name.rpartition("/")[2]}@{begin[1] if begin else 0}')
        part = data[int(begin[1]) :] if begin else data
        self.answer(206 if begin else 200, part, self.cut_at)

    def answer(self, status: int, body: bytes, cut: int | None = None) -> None:
        self.send_response(status)
        self.send_header('Content-Length', str(len(body) if cut is None else min(cut, len(body))))
        self.end_headers()
        self.wfile.write(body[:cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def bucket():
    handler = type('Handler', (Bucket,), {'asked': []})
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f'http://127.0.0.1:{server.server_port}', handler
    server.shutdown()
    thread.join()
    server.server_close()


URL = 'gs://openpi-assets/checkpoints/pi05_libero'


def test_a_buckets_checkpoint_is_fetched_once_and_its_version_is_kept(bucket, tmp_path):
    storage, handler = bucket
    seen = []
    found = find_source(URL, cache=tmp_path, storage=storage, progress=lambda *each: seen.append(each))
    kept = {
        path.relative_to(found.folder).as_posix(): path.read_bytes()
        for path in found.folder.rglob('*')
        if path.is_file()
    }
    assert kept == {n.removeprefix('checkpoints/pi05_libero/'): d for n, d in list(FILES.items())[:3]}
    assert found.known_name == 'pi05_libero'
    assert re.fullmatch('[0-9a-f]{64}', found.provenance()['revision'])
    total = sum(map(len, kept.values()))
    assert seen[-1][:2] == (total, total)
    handler.asked.clear()
    assert find_source(f'{URL}/params/', cache=tmp_path, storage=storage).folder == found.folder
    assert handler.asked == []


def test_what_was_cut_off_goes_on_where_it_ended(bucket, tmp_path):
    storage, handler = bucket
    handler.cut_at = 5000
    with pytest.raises(VlaError, match=r'0 was cut off at 5000 of 10240 bytes; import again .* What came is kept'):
        find_source(URL, cache=tmp_path, storage=storage)
    handler.cut_at = None
    found = find_source(URL, cache=tmp_path, storage=storage)
    assert (found.folder / 'params' / 'd' / '0').read_bytes() == FILES['checkpoints/pi05_libero/params/d/0']
    assert '0@5000' in handler.asked
    assert not list(tmp_path.rglob('*.partial'))


def test_a_damaged_file_is_not_kept(bucket, tmp_path):
    storage, handler = bucket
    handler.damaged = True
    with pytest.raises(VlaError, match='came damaged'):
        find_source(URL, cache=tmp_path, storage=storage)
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_without_a_network_the_sentence_says_what_to_bring(tmp_path):
    with pytest.raises(
        VlaError, match=r'cannot be read .* `gsutil -m cp -r gs://openpi-assets/.* bring params/ and assets/'
    ):
        find_source(URL, cache=tmp_path, storage='http://127.0.0.1:9')


def test_a_folder_is_itself_and_a_typing_error_is_named(tmp_path):
    assert find_source(tmp_path).folder == tmp_path
    assert find_source(tmp_path).provenance() == {'source': tmp_path.name}
    with pytest.raises(VlaError, match=r'none: no such file or folder, no id of the Hugging Face hub'):
        find_source(tmp_path / 'none')


def test_a_hubs_snapshot_is_taken_from_its_cache_with_its_commit(tmp_path, monkeypatch):
    """The hub's own client, offline: what it once fetched is used, what it did not is asked for in one sentence."""
    constants = pytest.importorskip('huggingface_hub.constants')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    commit = 'a' * 40
    place = tmp_path / 'models--lerobot--pi05_base'
    (place / 'snapshots' / commit).mkdir(parents=True)
    (place / 'snapshots' / commit / 'config.json').write_text('{}')
    (place / 'refs').mkdir()
    (place / 'refs' / 'main').write_text(commit)
    found = find_source('lerobot/pi05_base')
    assert found.provenance() == {'source': 'lerobot/pi05_base', 'revision': commit}
    assert (found.folder / 'config.json').is_file()
    said = (
        r'the hub cannot be reached .* `hf download lerobot/pi0_base --revision v2 --local-dir FOLDER`; bring \*\.saf'
    )
    with pytest.raises(VlaError, match=said):
        find_source('lerobot/pi0_base@v2')
