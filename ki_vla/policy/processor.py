"""Convert a robot's observations and actions to the model's and back, in training and on the robot alike.

In: camera images, state (SI) and instruction become uint8 views, a normalised padded state and prompt ids; an action
chunk becomes normalised deltas and target tokens. Out: what the model gives becomes absolute SI values again.

Legend: V views, H horizon or image height, W width, C colours, S state columns (N: as the robot has them, padded to the
model's), N action columns of the robot, A of the model, P rows of a carried chunk, L prompt tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ki_robot.contract.contract import Contract
from ki_robot.contract.parts import Camera
from ki_robot.errors import RobotError
from ki_robot.policy_values import policy_actions, policy_state, robot_actions
from ki_robot.transforms import (
    Scaling,
    Stats,
    cropped,
    pad,
    placement,
    resize_with_pad,
    scaling_of,
    step_scaling,
    unpad,
)
from ki_vla.errors import VlaError
from ki_vla.model.config import ModelConfig
from ki_vla.policy.model_inputs import ModelInputs, Processing, Targets
from ki_vla.tokens.actions import ActionCodec, ActionTokens
from ki_vla.tokens.naive import NaiveCodec
from ki_vla.tokens.prompt import Asks, action_prompt, plain_prompt
from ki_vla.tokens.tokenizer import TextTokenizer

if TYPE_CHECKING:
    from ki_robot.observation.observation import Observation

Images = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Processor:
    """Contract, statistics, tokenizer, action codec and model configuration, checked to fit each other.

    Attributes:
        contract: the robot.
        state_stats, action_stats: of the state, and of the actions after the delta transform.
        tokenizer: text and the layout of the vocabulary.
        codec: of the action tokens; None for a policy trained without them.
        config: the model.
        processing: the policy's choices.
    """

    contract: Contract
    state_stats: Stats
    action_stats: Stats
    tokenizer: TextTokenizer
    codec: ActionCodec | None
    config: ModelConfig
    processing: Processing = field(default_factory=Processing)
    action_tokens: ActionTokens | None = field(init=False, repr=False)
    _state: Scaling = field(init=False, repr=False)
    _actions: Scaling = field(init=False, repr=False)
    _flow: Scaling = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse parts that do not fit, by field."""
        self._check_sizes()
        try:
            self.state_stats.check(self.contract.state_names, 'state columns')
            self.action_stats.check(self.contract.action_names, 'action columns')
        except RobotError as error:
            raise VlaError(str(error)) from error
        of, rules = self.processing.normalisation, self.processing.rules
        tokens = None if self.codec is None else ActionTokens(self.codec, self.tokenizer.vocabulary)
        object.__setattr__(self, 'action_tokens', tokens)
        object.__setattr__(
            self, '_state', scaling_of(self.state_stats, self.processing.state_normalisation or of, rules)
        )
        object.__setattr__(self, '_actions', scaling_of(self.action_stats, of, rules))
        object.__setattr__(self, '_flow', self._flow_scaling())

    @property
    def floored(self) -> tuple[str, ...]:
        """State and action columns that hardly move in the statistics, whose noise is not scaled up."""
        return tuple(dict.fromkeys((*self._state.floored, *self._actions.floored)))

    @property
    def picture_size(self) -> int | None:
        """Of the square that the model is shown, where JPEGs are decoded reduced; None where they are not."""
        return self.config.vision.image_size if self.processing.jpeg_decode == 'reduced' else None

    # In ----------------------------------------------------------------------------------------------------------

    def observe(self, observation: Observation, subtask: str = '') -> ModelInputs:
        """What the model is shown of an observation, and of what it said it would do next.

        Raises:
            VlaError: a required camera is missing, a state of the wrong width or not finite, no instruction, or a
                prompt that is too long.
        """
        return self.inputs(observation.images, observation.state, observation.instruction, subtask)

    def inputs(
        self, images: Images, state: np.ndarray, instruction: str, subtask: str = '', asks: Asks = 'Action'
    ) -> ModelInputs:
        """What the model is shown of images by camera name, a state (SI) and an instruction; see `observe`.

        With `subtask`, what the policy said it would do next stands in the prompt; `asks='Subtask'` asks for it.
        """
        views, mask = self.views(images)
        state_N = self.normalised_state(state)
        prompt = np.array(self.prompt(instruction, state_N, subtask, asks), dtype=np.int64)
        return ModelInputs(views, mask, prompt, np.ones(len(prompt), dtype=bool), self._padded_state(state_N))

    def views(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """Images by camera name -> uint8 [V, H, W, C] in the contract's order, and which of them are there.

        A camera that is not required may be missing; its view is black and masked.

        Raises:
            VlaError: a required camera is missing, or a name is none of the contract's.
        """
        unknown = sorted(set(images) - set(self.contract.camera_names))
        if unknown:
            raise VlaError(f'images of unknown cameras {unknown}; the contract has {list(self.contract.camera_names)}.')
        size = self.config.vision.image_size
        views = np.zeros((len(self.contract.cameras), size, size, 3), dtype=np.uint8)
        mask = np.zeros(len(views), dtype=bool)
        for index, camera in enumerate(self.contract.cameras):
            if camera.name in images:
                views[index], mask[index] = self.view(camera, images[camera.name]), True
            elif camera.required:
                raise VlaError(f'camera {camera.name}: there is no image, and the contract requires one.')
        return views, mask

    def view(self, camera: Camera, image: np.ndarray) -> np.ndarray:
        """What the model is shown of a camera's picture: its crop, as a square, uint8 [H, W, C]."""
        return resize_with_pad(cropped(image, camera.crop), self.config.vision.image_size)

    def in_view(self, camera: Camera | None, height: int, width: int, x: float, y: float) -> tuple[float, float]:
        """Where a point of a whole picture is in its view, 0..1 each; beyond that where the crop leaves it out.

        Args:
            camera: whose picture; None for one from anywhere, which is not cropped.
            height: of the picture.
            width: of the picture.
            x: of the point, 0..1 from the left.
            y: of the point, 0..1 from the top.
        """
        crop = camera.crop if camera is not None and camera.crop is not None else (0.0, 0.0, 1.0, 1.0)
        rows, columns, size = round(height * crop[3]), round(width * crop[2]), self.config.vision.image_size
        top, left, new_height, new_width = placement(rows, columns, size)
        x, y = (x - crop[0]) / crop[2], (y - crop[1]) / crop[3]
        return (left + x * new_width) / size, (top + y * new_height) / size

    def normalised_state(self, state: np.ndarray) -> np.ndarray:
        """State (SI) [..., N] -> model space, float64, unpadded.

        Raises:
            VlaError: the wrong width, or a value that is not finite.
        """
        state = self._checked('state', state, self.contract.state_names)
        return self._state.apply(policy_state(self.contract, state))

    def prompt(self, instruction: str, state_N: np.ndarray, subtask: str = '', asks: Asks = 'Action') -> list[int]:
        """Prompt ids for an instruction and a normalised, unpadded state."""
        text = instruction.lower() if self.processing.lower_case else instruction
        limit, truncate = self.config.max_prompt, self.processing.truncate_prompt
        state_repr = self.config.prompt_state
        if state_repr is None:
            return plain_prompt(self.tokenizer, text, limit=limit, truncate=truncate)
        width = max(len(state_N), self.processing.state_text_columns)
        return action_prompt(
            self.tokenizer, text, pad(state_N, width)[0], state_repr, limit=limit, truncate=truncate,
            lowest_bin=self.processing.state_text_lowest, subtask=subtask, asks=asks,
        )  # fmt: skip

    # Training ----------------------------------------------------------------------------------------------------

    def targets(
        self, actions: np.ndarray, state: np.ndarray, *, steps: np.ndarray | None = None, text: str | None = None
    ) -> Targets:
        """What the model is to say and do for an action chunk.

        Args:
            actions: absolute SI values [H, N].
            state: the state (SI) at the observation, which deltas are relative to.
            steps: bool [H]: which steps are real; the rest lies beyond the end of an episode. All unless given.
            text: what the robot should do next, said before the action tokens (paper, section 5.1).

        Raises:
            VlaError: wrong shapes, values that are not finite in real steps, or more tokens than the model takes.
        """
        steps = self._checked_steps(steps)
        actions = np.asarray(actions, dtype=np.float64)
        if actions.shape != (self.config.horizon, len(self.contract.actions)):
            wanted = (self.config.horizon, len(self.contract.actions))
            raise VlaError(f'actions have shape {actions.shape}; this policy needs {wanted}.')
        needed = actions if self.processing.pad_steps == 'keep' else actions[steps]
        self._checked('actions', needed, self.contract.action_names)
        actions = np.where(np.isfinite(actions), actions, 0.0)
        said_HN = self._said_actions(actions, state)
        normal_HN, flow_HN = self._actions.apply(said_HN), self._flow.apply(said_HN)
        if self.processing.pad_steps == 'mask':
            normal_HN = np.where(steps[:, None], normal_HN, 0.0)
        padded_HA, real_A = pad(flow_HN.astype(np.float32), self.config.action_dim)
        padded_HA[~steps] = 0.0
        said = self._said(text)
        ids, loss, clipped = self._action_targets(normal_HN, steps)
        end = [self.tokenizer.vocabulary.eos] if said or ids else []
        target = np.array([*said, *ids, *end], dtype=np.int64)
        self._check_length(target)
        loss_T = np.array([True] * len(said) + loss + [True] * len(end), dtype=bool)
        action_T = np.array([False] * len(said) + [True] * (len(ids) + len(end)), dtype=bool)
        if not ids:
            action_T[:] = False
        return Targets(target, loss_T, action_T, padded_HA, steps[:, None] & real_A[None, :], clipped)

    def action_sample(
        self,
        images: Images,
        state: np.ndarray,
        instruction: str,
        actions: np.ndarray,
        *,
        steps: np.ndarray | None = None,
        text: str | None = None,
        subtask: str = '',
    ) -> dict[str, np.ndarray]:
        """One training sample with an action (and, with `text`, with language too), for `objective.batch.collate`.

        `text` is said before the action tokens, `subtask` has been said and stands in the prompt.
        """
        shown = self.inputs(images, state, instruction, subtask)
        return shown.sample() | self.targets(actions, state, steps=steps, text=text).sample()

    def text_sample(self, images: Images | Sequence[np.ndarray], question: str, answer: str) -> dict[str, np.ndarray]:
        """One training sample of pictures, a question and an answer, without action (M_act = 0).

        Args:
            images: by camera name, any of which may be missing, or a few pictures from anywhere.
            question: what is asked; a caption too is asked for.
            answer: what is to be said; boxes as `loc.box_text` writes them.

        Raises:
            VlaError: no picture or too many, an empty answer, or a question or an answer that is too long.
        """
        views, mask = self._pictures(images)
        prompt = plain_prompt(
            self.tokenizer, question, limit=self.config.max_prompt, truncate=self.processing.truncate_prompt
        )
        if not answer.strip():
            raise VlaError(f'the answer to {question!r} is empty.')
        state = np.zeros(self.config.state_dim, dtype=np.float32)
        ids = np.array(prompt, dtype=np.int64)
        shown = ModelInputs(views, mask, ids, np.ones(len(ids), dtype=bool), state)
        return shown.sample() | self._words(answer).sample()

    def subtask_sample(
        self, images: Images, state: np.ndarray, instruction: str, subtask: str
    ) -> dict[str, np.ndarray]:
        """One training sample of a moment and what is to be done next, without action (M_act = 0).

        Raises:
            VlaError: as `inputs`, and for an empty subtask.
        """
        if not subtask.strip():
            raise VlaError(f'the subtask of {instruction!r} is empty.')
        return self.inputs(images, state, instruction, asks='Subtask').sample() | self._words(subtask).sample()

    def normalised_actions(self, actions: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Absolute SI chunk [H, N] -> model space [H, N], unpadded: what a FAST codec is fitted on."""
        self._checked('actions', actions, self.contract.action_names)
        return self._actions.apply(self._said_actions(np.asarray(actions, dtype=np.float64), state))

    # Out ---------------------------------------------------------------------------------------------------------

    def actions(self, model_HA: np.ndarray, state: np.ndarray, said: bool = False) -> np.ndarray:
        """What the model gives [..., H, A] -> absolute SI [..., H, N], float64.

        Args:
            model_HA: the sampled chunk.
            state: the state (SI) [..., N] of the observation that the chunk was sampled for.
            said: it was said as tokens, which have a scale of their own (`Processing.flow_scale`).

        Raises:
            VlaError: the wrong width, or a value that is not finite.
        """
        model = np.asarray(model_HA, dtype=np.float64)
        if model.ndim < 2 or model.shape[-1] != self.config.action_dim:
            raise VlaError(
                f'the model gave actions of shape {model.shape}; {self.config.action_dim} columns are needed.'
            )
        normal = self._checked('model actions', unpad(model, len(self.contract.actions)), self.contract.action_names)
        return self._to_robot((self._actions if said else self._flow).invert(normal), state)

    def decoded(self, ids: Sequence[int], state: np.ndarray) -> np.ndarray:
        """Action tokens as the model said them -> absolute SI [H, N].

        Raises:
            VlaError: the policy has no action tokens, or the ids are no whole chunk.
        """
        if self.action_tokens is None:
            raise VlaError('this policy has no action tokens to decode.')
        return self._to_robot(self._actions.invert(self.action_tokens.decode(ids)), state)

    def carried(self, data_PN: np.ndarray, state: np.ndarray) -> np.ndarray:
        """The rest of an older chunk, absolute SI [P, N], as the model would say it now: float32 [P, A].

        Deltas are taken anew from the present state and normalised with the same statistics, so a carried prefix
        stands for the same positions as before. Nothing is appended.

        Args:
            data_PN: rows that begin where the new chunk begins.
            state: the state (SI) of the observation of the *new* chunk.
        """
        data = self._checked('carried chunk', data_PN, self.contract.action_names)
        flow_PN = self._flow.apply(self._said_actions(data, state))
        return pad(flow_PN.astype(np.float32), self.config.action_dim)[0]

    # Details -----------------------------------------------------------------------------------------------------

    def _check_sizes(self) -> None:
        """Contract, codec, vocabulary and model against each other."""
        config, contract, vocabulary = self.config, self.contract, self.tokenizer.vocabulary
        if self.processing.subtasks and config.prompt_state is None:
            raise VlaError(
                f'processing.subtasks: the prompt of pi0 (state_repr {config.state_repr!r}) has no place for a subtask.'
            )
        at_most = {
            'model.views': (config.views, len(contract.cameras), 'cameras'),
            'model.state_dim': (config.state_dim, len(contract.state), 'state columns'),
            'model.action_dim': (config.action_dim, len(contract.actions), 'action columns'),
        }
        for name, (have, need, what) in at_most.items():
            if need > have:
                raise VlaError(f'{name}: {have} is too small for the {need} {what} of {contract.name}.')
        equal = {
            'model.horizon and contract.horizon': (config.horizon, contract.horizon),
            'model.vocab_size and the vocabulary': (config.vocab_size, vocabulary.size),
        }
        if self.codec is not None:
            equal['codec.horizon and model.horizon'] = (self.codec.horizon, config.horizon)
            equal['codec.columns and the action columns'] = (self.codec.columns, len(contract.actions))
        for name, (one, other) in equal.items():
            if one != other:
                raise VlaError(f'{name} must be equal; they are {one} and {other}.')

    def _checked(self, what: str, values: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
        """Values as float64 [..., N], refused when of another width or not finite."""
        values = np.asarray(values, dtype=np.float64)
        if values.ndim < 1 or values.shape[-1] != len(names):
            raise VlaError(f'{what}: shape {values.shape}; {self.contract.name} has {len(names)} columns.')
        if not np.isfinite(values).all():
            column = names[int(np.argwhere(~np.isfinite(values))[0][-1])]
            raise VlaError(f'{what}: a value of {column} is not finite.')
        return values

    def _checked_steps(self, steps: np.ndarray | None) -> np.ndarray:
        """The mask of real steps, bool [H]."""
        if steps is None:
            return np.ones(self.config.horizon, dtype=bool)
        steps = np.asarray(steps)
        if steps.shape != (self.config.horizon,) or steps.dtype != bool:
            raise VlaError(f'steps: {steps.dtype} {steps.shape}; bool ({self.config.horizon},) is needed.')
        return steps

    def _check_length(self, target: np.ndarray) -> None:
        """Refuse more target tokens than the model takes."""
        if len(target) > self.config.max_targets:
            raise VlaError(
                f'{len(target)} target tokens do not fit the {self.config.max_targets} of model.max_targets: raise it, '
                'or fit the action codec with more tokens or a smaller scale.'
            )

    def _words(self, answer: str) -> Targets:
        """A text alone as target."""
        target = np.array([*self.tokenizer.encode(answer), self.tokenizer.vocabulary.eos], dtype=np.int64)
        self._check_length(target)
        shape = (self.config.horizon, self.config.action_dim)
        every = np.ones(len(target), dtype=bool)
        return Targets(target, every, ~every, np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=bool))

    def _said(self, text: str | None) -> list[int]:
        """The language before the action tokens, closed by a newline."""
        if text is None:
            return []
        if not text.strip():
            raise VlaError('the text of an action sample is empty; leave it out.')
        return [*self.tokenizer.encode(text.strip()), *self.tokenizer.encode('\n')]

    def _action_targets(self, normal_HN: np.ndarray, steps: np.ndarray) -> tuple[list[int], list[bool], int]:
        """Ids and loss mask of the action tokens, and how many numbers were clipped."""
        if self.action_tokens is None:
            return [], [], 0
        codec = self.action_tokens.codec
        whole = self.processing.pad_steps == 'keep' or bool(steps.all())
        if not whole and not isinstance(codec, NaiveCodec):
            return [], [], 0
        ids = self.action_tokens.encode(normal_HN, clip=True)
        loss = [True] * len(ids)
        if not whole and isinstance(codec, NaiveCodec):
            loss[:-1] = np.repeat(steps[codec.steps], codec.columns).tolist()
        return ids, loss, codec.beyond(normal_HN)

    def _pictures(self, images: Images | Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Views and mask for a text sample, where no camera is required."""
        size = self.config.vision.image_size
        if isinstance(images, Mapping):
            ordered = [cropped(images[c.name], c.crop) for c in self.contract.cameras if c.name in images]
            if len(ordered) != len(images):
                raise VlaError(f'images of unknown cameras; the contract has {list(self.contract.camera_names)}.')
            mask = np.array([name in images for name in self.contract.camera_names])
        else:
            ordered, mask = list(images), np.ones(len(images), dtype=bool)
        if not 1 <= len(ordered) <= self.config.views:
            raise VlaError(f'{len(ordered)} pictures; a sample needs 1 to {self.config.views}.')
        views = np.zeros((len(mask), size, size, 3), dtype=np.uint8)
        views[mask] = np.stack([resize_with_pad(image, size) for image in ordered])
        return views, mask

    def _said_actions(self, actions_HN: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Absolute SI -> what the policy says, in its own units, not normalised."""
        state = self._checked('state', state, self.contract.state_names)
        return policy_actions(self.contract, actions_HN, state)

    def _to_robot(self, said_HN: np.ndarray, state: np.ndarray) -> np.ndarray:
        """What the policy says, in its own units -> absolute SI."""
        return robot_actions(self.contract, said_HN, self._checked('state', state, self.contract.state_names))

    def _flow_scaling(self) -> Scaling:
        """Of the continuous actions."""
        if self.processing.flow_scale == 'column':
            return self._actions
        try:
            found = step_scaling(self.action_stats)
        except RobotError as error:
            raise VlaError(f'processing.flow_scale is step: {error}') from error
        if len(found.centre_N) != self.config.horizon:
            raise VlaError(
                f'stats.step_mean has {len(found.centre_N)} steps and model.horizon is {self.config.horizon}; compute '
                'the statistics for that horizon.'
            )
        return found

    def _padded_state(self, state_N: np.ndarray) -> np.ndarray:
        """Normalised state padded to the model's width, float32."""
        return pad(state_N.astype(np.float32), self.config.state_dim)[0]
