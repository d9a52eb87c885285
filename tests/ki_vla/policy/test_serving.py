"""What a bundle recommends to those who serve it: read, checked, and a default where it is silent."""

from __future__ import annotations

import json

import pytest

from ki_common.files import sha256_of
from ki_robot.contract.contract import load_contract
from ki_vla.errors import VlaError
from ki_vla.policy.bundle import Bundle, load_bundle, write_bundle
from ki_vla.policy.serving import Serving
from ki_vla.policy.untrained import write_untrained

HORIZON = 12


@pytest.fixture(scope='module')
def written(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_untrained(tmp_path_factory.mktemp('b') / 'arm', load_contract('arm_single').replace(horizon=HORIZON))


def rewritten(bundle: Bundle, tmp_path, **about) -> Bundle:
    return write_bundle(tmp_path / 'b', name='b', weights=bundle.weights, processor=bundle.processor, **about)


def test_what_is_recommended_is_written_and_read(written, tmp_path):
    wanted = Serving('rtc', 6, denoise_steps=5, max_delay=4)
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
    assert load_bundle(bundle.folder).serving == Serving('latest', HORIZON // 2, denoise_steps=10, max_delay=0)


def test_a_policy_trained_with_delays_is_continued_by_default():
    assert Serving.for_horizon(50, max_delay=6) == Serving('rtc', 25, max_delay=6)
    assert Serving.for_horizon(1).execute_steps == 1


@pytest.mark.parametrize(
    ('change', 'said'),
    [
        ({'mode': 'rct'}, r"serving\.mode: 'rct' is unknown; write one of latest"),
        ({'execute_steps': 0}, r'serving\.execute_steps: 0; write a whole number from 1'),
        ({'execute_steps': HORIZON}, r'serving\.execute_steps: 12; a chunk has 12 steps, write at most 11'),
        ({'max_delay': HORIZON}, r'serving\.max_delay: 12; a chunk has 12 steps'),
        ({'denoise_steps': True}, r'serving\.denoise_steps: True; write a whole number'),
        ({'speed': 2}, r'serving: needs exactly the fields'),
    ],
)
def test_what_no_node_could_do_is_refused_by_field(change, said):
    plain = {'mode': 'rtc', 'execute_steps': 6, 'denoise_steps': 10, 'max_delay': 4, **change}
    with pytest.raises(VlaError, match=said):
        Serving.from_dict(plain, HORIZON)


def test_a_head_that_no_step_has_trained_is_refused(written, tmp_path):
    with pytest.raises(VlaError, match=r'lists nothing\); train it with .* allow_untrained: true'):
        written.check_trained()
    part = rewritten(written, tmp_path / 'part', provenance={'trained': ['backbone', 'vision']})
    with pytest.raises(VlaError, match='lists backbone, vision'):
        part.check_trained()
    rewritten(written, tmp_path / 'whole', provenance={'trained': ['backbone', 'expert']}).check_trained()
    rewritten(written, tmp_path / 'silent').check_trained()
