"""One observation shown to a policy: what it sees and answers, by column, held to an answer from the policy's origin.

A golden file is an .npz, without pickled objects:

    camera/NAME   uint8 (height, width, 3), RGB, one for each camera of the contract
    state         (S,), in the order of the contract's state columns
    instruction   text
    noise         (H, A) float32, what the origin's sampler started from
    actions       (H, N), absolute, in the order of the contract's action columns: the origin's answer
    prompt        (L,) token ids of the origin's prompt, without padding; may be left out

State and actions are the numbers that the origin's code takes and gives, before the maps of the contract's columns.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ki_common.errors import first_line
from ki_robot.messages.images import Image
from ki_robot.policy_values import si_values
from ki_vla.errors import VlaError
from ki_vla.policy.inference import LoadedPolicy
from ki_vla.policy.processor import Processor

CAMERA = 'camera/'
INSTRUCTION = 'pick up the red block'
TOLERANCE = 0.05  # of the range that a column is scaled to; bfloat16 and another resize of images stay below


@dataclass(frozen=True, eq=False)
class Golden:
    """An observation, the noise that a chunk of it starts from, and what the policy's origin answers.

    Attributes:
        images: by camera name.
        state: (S,), SI.
        instruction: what to do.
        noise_HA: float32.
        actions_HN: the origin's answer, SI; None where there is none.
        prompt_L: the origin's token ids; None where they are not known.
    """

    images: Mapping[str, Image]
    state: NDArray[np.float64]
    instruction: str
    noise_HA: NDArray[np.float32]
    actions_HN: NDArray[np.float64] | None = None
    prompt_L: NDArray[np.int64] | None = None


@dataclass(frozen=True, eq=False)
class GoldenAnswer:
    """What a policy saw and said.

    Attributes:
        prompt: the text that its tokens stand for.
        prompt_L: the tokens.
        state_N: the state as it was scaled.
        actions_HN: absolute SI values.
        error_HN: how far that is from the origin's answer, in the range that columns are scaled to; None without one.
        prompt_agrees: whether the tokens are the origin's; None where they are not known.
    """

    prompt: str
    prompt_L: NDArray[np.int64]
    state_N: NDArray[np.float64]
    actions_HN: NDArray[np.float64]
    error_HN: NDArray[np.float64] | None = None
    prompt_agrees: bool | None = None

    def check(self, processor: Processor, tolerance: float = TOLERANCE) -> None:
        """Refuse an answer that is not the origin's.

        Raises:
            VlaError: the first thing that differs: the prompt, or the column that differs most.
        """
        if self.prompt_agrees is False:
            raise VlaError(
                f'the prompt is not that of the golden file: here it is {self.prompt!r}; compare the instruction, '
                'whether the state stands in it (--state-in-prompt, --pad-state), and the statistics.'
            )
        if self.error_HN is None or self.error_HN.max() <= tolerance:
            return
        step, column = (int(place) for place in np.unravel_index(np.argmax(self.error_HN), self.error_HN.shape))
        far = [n for n, worst in zip(processor.contract.action_names, self.error_HN.max(axis=0), strict=True)
               if worst > tolerance]  # fmt: skip
        raise VlaError(
            f'{processor.contract.action_names[column]} is {self.error_HN[step, column]:.3g} of its scaled range from '
            f'the golden answer at step {step}; {tolerance:g} is allowed, and {len(far)} of {self.error_HN.shape[1]} '
            f'columns differ by more ({", ".join(far)}). If all do, look at statistics, cameras and their order; if '
            'some do, at their unit, sign and representation.'
        )


def golden_observation(processor: Processor, seed: int = 0) -> Golden:
    """A synthetic observation, the same everywhere: shaded pictures, the mean state, and seeded noise."""
    ramp = np.linspace(0, 255, 224, dtype=np.uint8)
    images = {}
    for place, name in enumerate(processor.contract.camera_names):
        image = np.stack([np.tile(ramp, (224, 1)), np.tile(ramp[:, None], (1, 224)), np.full((224, 224), 80)], axis=-1)
        images[name] = np.ascontiguousarray(np.rot90(image, place)).astype(np.uint8)
    shape = (processor.config.horizon, processor.config.action_dim)
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return Golden(images, processor.state_stats.mean.copy(), INSTRUCTION, noise)


def read_golden(path: str | Path, processor: Processor) -> Golden:
    """A golden file for the robot of a policy.

    Raises:
        VlaError: not readable, a part missing, or one of another shape.
    """
    contract, config = processor.contract, processor.config
    try:
        with np.load(path, allow_pickle=False) as file:
            parts = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise VlaError(f'{path}: not a golden file ({first_line(error)}); see docs/how-to/openpi.md.') from error
    shapes = {
        'state': (len(contract.state),),
        'noise': (config.horizon, config.action_dim),
        'actions': (config.horizon, len(contract.actions)),
    }
    missing = [name for name in (*shapes, 'instruction', *(CAMERA + name for name in contract.camera_names))
               if name not in parts]  # fmt: skip
    if missing:
        raise VlaError(f'{path}: has no {", ".join(missing)}; it has {", ".join(sorted(parts)) or "nothing"}.')
    for name, shape in shapes.items():
        if parts[name].shape != shape:
            raise VlaError(f'{path}: {name} has the shape {parts[name].shape}; {shape} is needed.')
    images = {name: parts[CAMERA + name] for name in contract.camera_names}
    for name, image in images.items():
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise VlaError(
                f'{path}: {CAMERA}{name} is {image.dtype} {image.shape}; uint8 (height, width, 3) is needed.'
            )
    prompt = parts.get('prompt')
    state = si_values(contract.state, parts['state'].astype(np.float64))
    actions = si_values(contract.actions, parts['actions'].astype(np.float64))
    return Golden(
        images, state, str(parts['instruction']), parts['noise'].astype(np.float32), actions,
        None if prompt is None else prompt.astype(np.int64),
    )  # fmt: skip


def answer(policy: LoadedPolicy, golden: Golden) -> GoldenAnswer:
    """What a policy sees of a golden observation, and answers.

    Raises:
        VlaError: the observation does not fit the policy.
    """
    processor = policy.bundle.processor
    inputs = processor.inputs(golden.images, golden.state, golden.instruction)
    actions = processor.actions(policy.engine.infer(inputs, golden.noise_HA), golden.state)
    error = None
    if golden.actions_HN is not None:
        columns = len(processor.contract.actions)
        ours, theirs = (processor.carried(each, golden.state)[:, :columns] for each in (actions, golden.actions_HN))
        error = np.abs(ours.astype(np.float64) - theirs)
    agrees = None if golden.prompt_L is None else np.array_equal(inputs.prompt_L, golden.prompt_L)
    text = processor.tokenizer.tokenizer.decode(inputs.prompt_L.tolist(), skip_special_tokens=False)
    return GoldenAnswer(text, inputs.prompt_L, processor.normalised_state(golden.state), actions, error, agrees)
