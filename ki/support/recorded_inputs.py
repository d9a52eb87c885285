"""What a policy was shown in recordings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from ki_vla.policy.model_inputs import ModelInputs
    from ki_vla.policy.processor import Processor


def recorded_inputs(processor: Processor, recordings: Path, count: int) -> list[ModelInputs]:
    """Observations spread over recordings, as the model is shown them.

    Args:
        processor: Of the policy.
        recordings: A folder of recordings, or their index.
        count: How many; fewer where there are fewer.

    Raises:
        KiError: the recordings cannot be read, or hold nothing of the policy's robot.
    """
    from training.index.recordings import open_recordings
    from training.samples.dataset import EpisodeDataset

    recorded = open_recordings(recordings, processor.contract)
    dataset = EpisodeDataset(recorded, picture_size=processor.picture_size)
    places = np.unique(np.linspace(0, len(dataset) - 1, count).astype(int))
    samples = (dataset[int(place)] for place in places)
    return [processor.inputs(each.images, each.state_S, each.instruction or 'do it', each.subtask) for each in samples]
