"""Output of a processor: model inputs and targets as numpy arrays; and its settings.

Legend: V views, H horizon or image height, W width, C colours, S state columns of the model, A action columns of the
model, L prompt tokens, T target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import NonNegativeInt

from ki_robot.transforms import Normalisation, ScalingRules
from ki_vla.model.config import VlaConfig

PadSteps = Literal['mask', 'keep']
FlowScale = Literal['column', 'step']
JpegDecode = Literal['full', 'reduced']


class Processing(VlaConfig):
    """Choices that belong to a policy and are saved with it."""

    normalisation: Normalisation = 'quantile'
    """How state and actions are normalised: by quantiles (pi0.5, FAST), by mean and deviation (pi0), or not at all."""
    state_normalisation: Normalisation | None = None
    """How the state is normalised where it is not as the actions; lerobot names the two apart."""
    rules: ScalingRules = 'ki'
    """Whose formulas scale state and actions: this project's, or those of openpi or lerobot, for a policy that was
    trained there on these statistics. Theirs have no floor under the span of a column that hardly moves."""
    state_text_columns: NonNegativeInt = 0
    """How many numbers the prompt holds at least for the state; a shorter one is filled with the middle of the range,
    as lerobot 0.4 did (32). 0: as many as the robot has columns."""
    state_text_lowest: Literal[0, -1] = 0
    """What the prompt says of a state below its range: 0, the first of 256 steps; or -1, as in openpi and lerobot."""
    flow_scale: FlowScale = 'column'
    """How continuous actions are scaled: `column`, by the same numbers at every step, as action tokens always are; or
    `step`, by mean and deviation of each step and column. Under one scale for all, the first steps of a chunk, which
    are the ones executed, are small numbers beside the last ones, and are learned last."""
    pad_steps: PadSteps = 'mask'
    """What becomes of action tokens where steps lie beyond the end of an episode. A FAST token mixes all steps, so
    `mask` leaves the tokens of such a chunk out; `keep` trains on them with the values that the data give for those
    steps. The continuous loss is never taken on them."""
    jpeg_decode: JpegDecode = 'full'
    """How a JPEG of a camera was decoded in training, and so is in the node and in replays: `full`, at its size; or
    `reduced`, at a half, a quarter or an eighth of it (a scaled DCT) where that is still as large as what the model is
    shown. Pictures that never were a JPEG are resized from their full size either way."""
    truncate_prompt: bool = False
    """Leave words out of an instruction that is too long, instead of refusing it."""
    lower_case: bool = False
    """Instructions in lower case, as pi0-FAST was trained."""
    subtasks: bool = False
    """The policy works in two levels, as pi0.5 does: it first says what it will do next, and acts with those words in
    its prompt."""


@dataclass(frozen=True, eq=False)
class ModelInputs:
    """What the model is shown: uint8 views, validity of each, prompt ids, normalised and padded state."""

    images_VHWC: np.ndarray
    image_mask_V: np.ndarray
    prompt_L: np.ndarray
    prompt_mask_L: np.ndarray
    state_S: np.ndarray

    def sample(self) -> dict[str, np.ndarray]:
        """As `ki_vla.objective.batch.collate` takes it, colours first."""
        return {
            'images_VCHW': np.ascontiguousarray(self.images_VHWC.transpose(0, 3, 1, 2)),
            'image_mask_V': self.image_mask_V,
            'prompt_L': self.prompt_L,
            'prompt_mask_L': self.prompt_mask_L,
            'state_S': self.state_S,
        }


@dataclass(frozen=True, eq=False)
class Targets:
    """What the model is to say and do.

    Attributes:
        target_T: ids that follow the prompt.
        loss_mask_T: M_l, where the token loss is taken.
        action_token_T: which of them stand for an action rather than text.
        actions_HA: normalised, delta where the contract says so, padded with zeros; float32.
        action_mask_HA: M_act: where the continuous loss is taken.
        clipped: how many numbers of the chunk lay beyond the codec's range and were written as the nearest within.
    """

    target_T: np.ndarray
    loss_mask_T: np.ndarray
    action_token_T: np.ndarray
    actions_HA: np.ndarray
    action_mask_HA: np.ndarray
    clipped: int = 0

    def sample(self) -> dict[str, np.ndarray]:
        """As `ki_vla.objective.batch.collate` takes it."""
        return {
            'target_T': self.target_T,
            'target_mask_T': np.ones(len(self.target_T), dtype=bool),
            'loss_mask_T': self.loss_mask_T,
            'action_token_T': self.action_token_T,
            'actions_HA': self.actions_HA,
            'action_mask_HA': self.action_mask_HA,
        }
