"""How a policy was made to be served: the recommendations that a bundle carries in `config.json`, section `serving`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from ki_vla.errors import VlaError

Mode = Literal['latest', 'queue', 'temporal_ensemble', 'rtc']  # see ki_policy_node/policy/continuation.py
MODES: tuple[str, ...] = get_args(Mode)
DENOISE_STEPS = 10  # the paper's


@dataclass(frozen=True)
class Serving:
    """What a node does with a policy unless its parameters say otherwise.

    The horizon itself is part of the model's structure (`ModelConfig.horizon`).

    Attributes:
        mode: how a chunk follows the one before, of `MODES`.
        execute_steps: steps of a chunk that are executed before the next one is due; below the horizon.
        denoise_steps: Euler steps from noise to actions.
        max_delay: the longest inference delay, in steps, that the model was trained to continue over (training-time
            real-time chunking, arXiv 2512.05964); 0: it was not trained to.

    Raises:
        VlaError: an unknown mode, or a number out of range.
    """

    mode: str
    execute_steps: int
    denoise_steps: int = DENOISE_STEPS
    max_delay: int = 0

    def __post_init__(self) -> None:
        """Refuse what no node could do."""
        if self.mode not in MODES:
            raise VlaError(f'serving.mode: {self.mode!r} is unknown; write one of {", ".join(MODES)}.')
        for name, least in (('execute_steps', 1), ('denoise_steps', 1), ('max_delay', 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise VlaError(f'serving.{name}: {value!r}; write a whole number from {least}.')

    @classmethod
    def for_horizon(cls, horizon: int, max_delay: int = 0) -> Serving:
        """The default: half of every chunk is executed; continued where trained to, else replaced by the latest.

        Args:
            horizon: steps of a chunk.
            max_delay: see the class.
        """
        return cls('rtc' if max_delay else 'latest', max(1, horizon // 2), max_delay=max_delay)

    @classmethod
    def from_dict(cls, data: Any, horizon: int) -> Serving:
        """From plain JSON.

        Args:
            data: the section; None where a bundle has none, which gives the default.
            horizon: steps of a chunk.

        Raises:
            VlaError: an unknown or missing field, or a value that does not fit the horizon.
        """
        if data is None:
            return cls.for_horizon(horizon)
        names = {each.name for each in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != names:
            found = sorted(data) if isinstance(data, Mapping) else type(data).__name__
            raise VlaError(f'serving: needs exactly the fields {sorted(names)}, got {found}.')
        serving = cls(**data)
        serving.check_horizon(horizon)
        return serving

    def check_horizon(self, horizon: int) -> None:
        """Refuse steps that a chunk does not have.

        Raises:
            VlaError: names the field, its value and the most that it may be.
        """
        for name in ('execute_steps', 'max_delay'):
            most = max(1, horizon - 1)
            if getattr(self, name) > most:
                raise VlaError(
                    f'serving.{name}: {getattr(self, name)}; a chunk has {horizon} steps, write at most {most}.'
                )
