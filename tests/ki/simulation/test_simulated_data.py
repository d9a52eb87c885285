"""Data of a run that the simulator makes: they show what the policy of the run is shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import cv2
import numpy as np
import pytest
import yaml

from ki.simulation.simulated_data import first_view
from ki_sim.vqa.vqa_data import WHOLE
from training.train.config import load_run

ROOT = Path(__file__).resolve().parents[3]
SMALL = {'moments': 2, 'scenes': 3, 'arrangements': 1, 'held_scenes': 0, 'workers': 1}


@pytest.mark.parametrize('robot', ['bimanual_demo', 'bimanual_mobile'])
def test_pictures_with_words_show_what_the_first_camera_shows_the_policy(
    robot: str, tmp_path: Path, ki_process: Callable[..., CompletedProcess[str]]
) -> None:
    plain = yaml.safe_load((ROOT / 'config/train/demo.yaml').read_text())
    plain |= {'robot': robot, 'simulate': plain['simulate'] | SMALL | {'out': str(tmp_path)}}
    config = tmp_path / 'run.yaml'
    config.write_text(yaml.safe_dump(plain))
    done = ki_process('train', config, '--data-only')
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in (tmp_path / 'vqa/train.jsonl').read_text().splitlines()]
    sides = {cv2.imread(str(tmp_path / 'vqa' / name)).shape[0] for name in {line['image'] for line in lines}}
    view = first_view(load_run(config))
    assert sides == {round(plain['simulate']['image_size'] * (1.0 if view.crop is None else view.crop[3]))}
    with np.load(next((tmp_path / 'moments').glob('*.npz'))) as moments:
        assert str(moments['cameras'][0]) == view.camera


@pytest.mark.parametrize('robot', ['g1_upper_body', 'arm_single'])
def test_a_robot_with_cameras_of_its_own_is_shown_whole_pictures_from_the_head(robot: str) -> None:
    assert first_view(load_run(ROOT / 'config/train/demo.yaml').replace(robot=robot)) == WHOLE
