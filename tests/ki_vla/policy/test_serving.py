"""What a bundle recommends to those who serve it: read, checked, and a default where it is silent."""

from __future__ import annotations

import json

import pytest

from ki_common.files import sha256_of
from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.policy.bundle import Bundle, load_bundle, write_bundle
from ki_vla.policy.bundle_files import ConfigFile
from ki_vla.policy.serving import Serving
from ki_vla.policy.untrained import write_untrained

HORIZON = 12


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_untrained(tmp_path_factory.mktemp('b') / 'arm', load_contract('arm_single').replace(horizon=HORIZON))


def rewritten(bundle: Bundle, tmp_path, **about) -> Bundle:
    return write_bundle(tmp_path / 'b', name='b', weights=bundle.weights, processor=bundle.processor, **about)


def test_what_is_recommended_is_written_and_read(written, tmp_path):
    wanted = Serving(mode='rtc', execute_steps=6, denoise_steps=5, max_delay=4)
    assert load_bundle(rewritten(written, tmp_path, serving=wanted).folder).serving == wanted


def test_a_bundle_without_the_section_has_the_defaults(written, tmp_path):
    bundle = rewritten(written, tmp_path)
    config, manifest = (bundle.folder / name for name in ('config.json', 'manifest.json'))
    plain = json.loads(config.read_text())
    del plain['serving']
    config.write_text(json.dumps(plain))
    listed = json.loads(manifest.read_text())
    listed['files']['config.json'] = {'bytes': config.stat().st_size, 'sha256': sha256_of(config)}
    manifest.write_text(json.dumps(listed))
    assert load_bundle(bundle.folder).serving == Serving(
        mode='latest', execute_steps=HORIZON // 2, denoise_steps=10, max_delay=0
    )


def test_a_policy_trained_with_delays_is_continued_by_default():
    assert Serving.for_horizon(50, max_delay=6) == Serving(mode='rtc', execute_steps=25, max_delay=6)
    assert Serving.for_horizon(1).execute_steps == 1


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'mode': 'rct'}, r"serving\.mode is 'rct'; write one of latest, queue"),
        ({'execute_steps': 0}, r'serving\.execute_steps is 0; write a whole number above 0'),
        ({'execute_steps': HORIZON}, r'serving\.execute_steps is 12; a chunk has 12 steps, write at most 11'),
        ({'max_delay': HORIZON}, r'serving\.max_delay is 12; a chunk has 12 steps'),
        ({'denoise_steps': True}, r'serving\.denoise_steps is True; write a whole number'),
        ({'denoise_steps': ...}, r'serving has no field denoise_steps; a policy says all of them'),
        ({'speed': 2}, r"serving has the unknown field 'speed'; known are mode, execute_steps"),
    ],
)
def test_what_no_node_could_do_is_refused_by_field(written, change, said):
    serving = {'mode': 'rtc', 'execute_steps': 6, 'denoise_steps': 10, 'max_delay': 4, **change}
    config = json.loads((written.folder / 'config.json').read_text())
    config['serving'] = {name: value for name, value in serving.items() if value is not ...}
    with pytest.raises(VlaError, match=f'^config.json: {said}'):
        ConfigFile.parse(config, 'config.json')


def test_a_head_that_no_step_has_trained_is_refused(written, tmp_path):
    with pytest.raises(VlaError, match=r'lists nothing\); train it with .* allow_untrained: true'):
        written.check_trained()
    part = rewritten(written, tmp_path / 'part', provenance={'trained': ['backbone', 'vision']})
    with pytest.raises(VlaError, match='lists backbone, vision'):
        part.check_trained()
    rewritten(written, tmp_path / 'whole', provenance={'trained': ['backbone', 'expert']}).check_trained()
    rewritten(written, tmp_path / 'silent').check_trained()
