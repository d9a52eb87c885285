"""Metrics of a run on Weights & Biases, when the field `wandb` names a project; unused otherwise.

Where there is no network, or none is wanted, wandb's own WANDB_MODE=offline writes files that `wandb sync` sends later.
"""

from __future__ import annotations

import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.errors import TrainingError
from training.train.config import Run

RUN_ID_FILE = 'wandb_id.txt'


def check_tracking(run: Run) -> None:
    """Refuses a run that asks for wandb where it is not installed: before hours of training, and not after.

    Raises:
        TrainingError: it is not installed.
    """
    if run.wandb and importlib.util.find_spec('wandb') is None:
        raise TrainingError(
            f'wandb: the run asks for project {run.wandb!r}, and wandb is not installed here; '
            '`pip install wandb`, or leave the field out (metrics.jsonl and TensorBoard are written anyway).'
        )


class Tracker:
    """One stage as one run of wandb; a stage that is resumed goes on in the same one.

    Args:
        run: its `wandb` names the project.
        folder: of the stage; its name tells the stages of a run apart.

    Raises:
        TrainingError: not installed, not logged in, not reachable.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        check_tracking(run)
        import wandb

        place = folder / RUN_ID_FILE
        if not place.is_file():
            place.write_text(secrets.token_hex(4), encoding='utf-8')
        try:
            self._run: Any = wandb.init(
                project=run.wandb,
                name=f'{run.name}/{folder.name}',
                group=run.name,
                id=place.read_text(encoding='utf-8').strip(),
                resume='allow',
                dir=str(folder),
                config=run.to_dict(),
                settings=wandb.Settings(console='off'),
            )
        except Exception as error:  # wandb raises errors of its own, of its HTTP client and of its service process
            raise TrainingError(
                f'wandb: {" ".join(str(error).split())} Run `wandb login`, set WANDB_MODE=offline, or leave the field '
                'wandb out.'
            ) from error

    def write(self, step: int, kind: str, values: Mapping[str, float]) -> None:
        """One line of the journal; kind is `train` or `validation`."""
        self._run.log({f'{kind}/{name}': value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Sends what is left."""
        self._run.finish()
