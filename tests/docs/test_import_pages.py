"""The import pages, command by command, on small folders of the real layout: from a name to a policy that acts."""

from __future__ import annotations

import http.server
import importlib.util
import json
import shlex
import threading
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from safetensors.numpy import save_file as save_numpy
from typer.testing import CliRunner

from ki_robot.contract.contract import Contract, load_contract
from ki_robot.transforms import save_stats
from ki_vla.importers import policy as importing
from ki_vla.model import config as presets
from ki_vla.policy.golden import answer, golden_observation
from ki_vla.policy.inference import load_policy
from ki_vla.policy.untrained import untrained_processor
from ki_vla.tokens.tokenizer import train_tokenizer

pytest.importorskip('tensorstore', reason='needs the extra checkpoints')
ROOT = Path(__file__).resolve().parents[2]
SMALL = presets.preset('tiny', max_prompt=600, action_dim=32, state_dim=32)


def commands(page: str) -> list[list[str]]:
    """The `ki bundle import` and `ki bundle check` commands of a page, as words."""
    lines = (ROOT / 'docs' / 'how-to' / page).read_text().splitlines()
    return [shlex.split(line)[2:] for line in lines if line.startswith(('ki bundle import', 'ki bundle check'))]


@pytest.fixture(scope='module')
def layouts() -> ModuleType:
    """How checkpoints are laid out: the tables of tests/ki_vla/importers."""
    path = ROOT / 'tests' / 'ki_vla' / 'importers' / 'conftest.py'
    spec = importlib.util.spec_from_file_location('checkpoint_layouts', path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place where the full size is a small one, and so is Gemma's vocabulary."""
    words = train_tokenizer(['Task: pick up the cup, State: 0 128 255;\nAction: '], size=SMALL.vocab_size)
    monkeypatch.setitem(presets.PRESETS, 'full', SMALL)
    monkeypatch.setattr(importing, 'load_gemma', lambda _: words)
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'paligemma').mkdir()
    return tmp_path


def norm_stats(path: Path, contract: Contract) -> None:
    parts = {}
    for part, width in (('state', len(contract.state)), ('actions', len(contract.actions))):
        moments = {'mean': 0.0, 'std': 0.5, 'q01': -1.0, 'q99': 1.0}
        parts[part] = {name: [value] * width + [0.0] * (32 - width) for name, value in moments.items()}
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({'norm_stats': parts}))


def jax_checkpoint(layouts: ModuleType, folder: Path, robot: str, asset: str) -> None:
    rng = np.random.default_rng(5)
    table = layouts.openpi_jax_table(SMALL, True)
    layouts.write_orbax_folder({n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in table.items()}, folder)
    norm_stats(folder / 'assets' / asset / 'norm_stats.json', load_contract(robot))


def lerobot_checkpoint(layouts: ModuleType, folder: Path, cameras: tuple[str, ...], columns: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(6)
    table = layouts.openpi_table(SMALL, True, 'model.')
    save_numpy({n: rng.normal(0, 0.1, s).astype(np.float32) for n, s in table.items()}, folder / 'model.safetensors')
    features = {f'observation.images.{name}': {'type': 'VISUAL', 'shape': [3, 224, 224]} for name in cameras}
    features['observation.state'] = {'type': 'STATE', 'shape': [columns]}
    said = {
        'type': 'pi05', 'chunk_size': 50, 'input_features': features,
        'output_features': {'action': {'type': 'ACTION', 'shape': [columns]}}, 'tokenizer_max_length': 600,
    }  # fmt: skip
    base = columns == 32
    if not base:
        relative = any(c.representation == 'delta' for c in load_contract('so101').actions)
        said |= {'use_relative_actions': relative, 'relative_exclude_joints': ['gripper']}
        said['action_feature_names'] = [f'{name}.pos' for name in load_contract('so101').action_names]
        numbers = {
            f'{feature}.{name}': np.full(columns, value, np.float32)
            for feature in ('observation.state', 'action')
            for name, value in {'mean': 0.0, 'std': 30.0, 'q01': -60.0, 'q99': 60.0}.items()
        }
        save_numpy(numbers, folder / 'numbers.safetensors')
        step = {'registry_name': 'normalizer_processor', 'config': {}, 'state_file': 'numbers.safetensors'}
        (folder / 'policy_preprocessor.json').write_text(json.dumps({'name': 'policy_preprocessor', 'steps': [step]}))
    (folder / 'config.json').write_text(json.dumps(said))


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served as gs://openpi-assets."""
    folder = tmp_path / 'bucket'

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            query = urllib.parse.parse_qs(url.query)
            if 'prefix' in query:
                found = [path for path in folder.rglob('*') if path.is_file()]
                names = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
                items = [
                    {'name': name, 'size': str(size), 'generation': '1'}
                    for name, size in names.items()
                    if name.startswith(query['prefix'][0])
                ]
                body = json.dumps({'items': items}).encode()
            else:
                body = (folder / urllib.parse.unquote(url.path.rpartition('/')[2])).read_bytes()
            self.send_response(200)
            self.send_header('Content-Length', str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv('STORAGE_EMULATOR_HOST', f'http://127.0.0.1:{server.server_port}')
    monkeypatch.setenv('KI_CACHE', str(tmp_path / 'cache'))
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def run(words: list[str]) -> str:
    from ki.commands.bundle import app

    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def golden(bundle: str) -> None:
    """golden.npz as the page's snippet makes it, by the bundle itself."""
    with load_policy(bundle, 'torch') as policy:
        processor = policy.bundle.processor
        shown = golden_observation(processor)
        said = answer(policy, shown)
        from ki_robot.policy_values import mapped_values

        contract = processor.contract
        np.savez(
            'golden.npz', state=mapped_values(contract.state, shown.state), instruction=shown.instruction,
            noise=shown.noise_HA, actions=mapped_values(contract.actions, said.actions_HN),
            **{f'camera/{name}': image for name, image in shown.images.items()},
        )  # fmt: skip


def test_the_page_about_openpi_works_as_written(layouts: ModuleType, small: Path, bucket: Path) -> None:
    jax_checkpoint(layouts, bucket / 'checkpoints' / 'pi05_droid', 'droid', 'droid')
    jax_checkpoint(layouts, bucket / 'checkpoints' / 'pi05_libero', 'libero', 'physical-intelligence/libero')
    jax_checkpoint(layouts, small / 'checkpoints' / 'pi05_aloha' / 'my_run' / '29999', 'aloha', 'trossen')
    said = [run(words) for words in commands('openpi.md') if words[0] == 'import']
    assert "horizon: 15 steps (openpi's configuration pi05_droid)" in said[0]
    assert 'views: base_0_rgb <- exterior, left_wrist_0_rgb <- wrist; absent: right_wrist_0_rgb' in said[0]
    assert "state: not shown (openpi's configuration pi05_libero)" in said[1]
    assert 'statistics: assets/trossen/norm_stats.json, by the rules of openpi' in said[2]
    golden('pi05_droid')
    checks = [run(words) for words in commands('openpi.md') if words[0] == 'check']
    assert 'agrees with golden.npz' in checks[-1]
    with load_policy('pi05_libero', 'torch') as policy:
        images = {name: np.zeros((48, 64, 3), np.uint8) for name in policy.contract.camera_names}
        assert policy.act(images, np.zeros(8), 'pick up the cup').shape == (10, 7)


def test_the_page_about_lerobot_works_as_written(
    layouts: ModuleType, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip('huggingface_hub.constants')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(small / 'hub'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    place = small / 'hub' / 'models--lerobot--pi05_base'
    views = ('base_0_rgb', 'left_wrist_0_rgb', 'right_wrist_0_rgb')
    lerobot_checkpoint(layouts, place / 'snapshots' / ('b' * 40), views, 32)
    (place / 'refs').mkdir()
    (place / 'refs' / 'main').write_text('b' * 40)
    tuned = small / 'outputs' / 'train' / 'pick' / 'checkpoints' / 'last' / 'pretrained_model'
    lerobot_checkpoint(layouts, tuned, ('top', 'hand'), 6)
    robot = load_contract('so101')
    own = untrained_processor(robot)
    save_stats(small / 'stats.json', {'state': own.state_stats, 'actions': own.action_stats})
    said = [run(words) for words in commands('lerobot.md') if words[0] == 'import']
    assert 'views: top <- front, hand <- wrist' in said[0]
    assert "state: as text in the prompt (lerobot's pi05)" in said[0]
    assert 'statistics: stats.json, by the rules of ki' in said[1]
    golden('pick')
    assert 'agrees with golden.npz' in [run(words) for words in commands('lerobot.md') if words[0] == 'check'][-1]
