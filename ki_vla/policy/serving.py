"""How to serve a policy: the recommendations in `config.json` of its bundle, section `serving`."""

from __future__ import annotations

from typing import Literal, get_args

from pydantic import NonNegativeInt, PositiveInt

from ki_vla.errors import VlaError
from ki_vla.model.config import VlaConfig

Mode = Literal['latest', 'queue', 'temporal_ensemble', 'rtc']  # see ki_policy_node/cycle/continuation.py
AskedMode = Literal['auto', 'latest', 'queue', 'temporal_ensemble', 'rtc', 'guided']  # auto: what the bundle recommends
Decode = Literal['actions', 'tokens']
ASKED_MODES: tuple[str, ...] = get_args(AskedMode)
DENOISE_STEPS = 10  # the paper's


class Serving(VlaConfig):
    """What a node does with a policy unless its parameters say otherwise.

    The horizon itself is part of the model's structure (`ModelConfig.horizon`).
    """

    mode: Mode
    """How a chunk follows the one before."""
    execute_steps: PositiveInt
    """Steps of a chunk that are executed before the next one is due; below the horizon."""
    denoise_steps: PositiveInt = DENOISE_STEPS
    """Euler steps from noise to actions."""
    decode: Decode = 'actions'
    """Where actions come from: `actions`, the action head; or `tokens`, said by the backbone one by one (pi0-FAST)."""
    max_delay: NonNegativeInt = 0
    """The longest inference delay, in steps, that the model was trained to continue over (training-time real-time
    chunking, arXiv 2512.05964); 0: it was not trained to."""

    @classmethod
    def for_horizon(cls, horizon: int, max_delay: int = 0, decode: Decode = 'actions') -> Serving:
        """The default: half of every chunk is executed; continued where trained to, else replaced by the latest.

        Args:
            horizon: steps of a chunk.
            max_delay: see the class; tokens are not continued.
            decode: see the class.
        """
        max_delay = 0 if decode == 'tokens' else max_delay
        mode: Mode = 'rtc' if max_delay else 'latest'
        return cls(mode=mode, execute_steps=max(1, horizon // 2), decode=decode, max_delay=max_delay)

    def check_horizon(self, horizon: int) -> None:
        """Refuse steps that a chunk does not have.

        Raises:
            VlaError: names the field, its value and the most that it may be.
        """
        for name in ('execute_steps', 'max_delay'):
            most = max(1, horizon - 1)
            if getattr(self, name) > most:
                raise VlaError(
                    f'serving.{name} is {getattr(self, name)}; a chunk has {horizon} steps, write at most {most}.'
                )
