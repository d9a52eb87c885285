"""From a run's configuration to the data that the simulator makes for it, in the process that trains."""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ki_sim.moments.shards import MomentSettings
    from ki_sim.vqa.vqa_data import PictureView
    from training.train.config import Run


def load_triton_before_mesa() -> None:
    """For a process that renders and then trains: an optimiser loads Triton, which crashes where Mesa came first."""
    with contextlib.suppress(ImportError):
        importlib.import_module('triton')


def first_view(run: Run) -> PictureView:
    """What the first camera of a run's robot shows its policy: its pictures with words show the same.

    Those for a robot with other cameras than the simulator's are from the head, whole.
    """
    from ki_robot.contract.contract import load_contract
    from ki_sim.vqa.vqa_data import WHOLE, PictureView
    from ki_sim.world.robot import ALL_CAMERAS

    first = load_contract(run.robot).cameras[:1]
    return next((PictureView(camera.name, camera.crop) for camera in first if camera.name in ALL_CAMERAS), WHOLE)


def moment_settings(run: Run) -> MomentSettings:
    """What the moments of a run are made of: its robot's columns and cameras, and chunks as long as its model's."""
    from ki_robot.contract.contract import load_contract
    from ki_sim.moments.shards import MomentSettings
    from ki_sim.tasks.tasks import task_names

    wanted, contract = run.simulate, load_contract(run.robot)
    assert wanted is not None
    return MomentSettings(
        robot=contract.name,
        state=contract.state_names,
        actions=contract.action_names,
        cameras=contract.camera_names,
        horizon=int(run.model.get('horizon', contract.horizon)),
        tasks=tuple(task_names(wanted.tasks)),
        image_size=wanted.image_size,
        nearest=wanted.bias,
        first_seed=wanted.first_seed,
    )
