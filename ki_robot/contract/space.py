"""The space part of a contract: the robot's URDF, which links may touch, and boxes that frames must not leave."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from ki_robot.contract.names import Frame
from ki_robot.contract.parts import ContractPart

Triple = tuple[float, float, float]


class Box(ContractPart):
    """A box along the axes of the URDF's root frame that the origin of one link must not leave."""

    frame: Frame
    """A link of the URDF, such as a tool flange."""
    lower: Triple
    """Least x, y, z, m."""
    upper: Triple
    """Greatest x, y, z, m."""

    @model_validator(mode='after')
    def _leaves_room(self) -> Self:
        if not all(low < high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError(f'lower is {list(self.lower)}, not below upper {list(self.upper)}; swap or correct them')
        return self


class Space(ContractPart):
    """What is checked of every chunk before it is followed. Needs the extra `space` (pin, coal)."""

    urdf: str = Field(min_length=1, max_length=4096)
    """The robot's URDF (xacro expanded), a path relative to the contract's file."""
    srdf: str = Field(default='', max_length=4096)
    """MoveIt's SRDF, a path relative to the contract's file: its disable_collisions pairs may touch."""
    allowed_pairs: tuple[tuple[Frame, Frame], ...] = Field(default=(), max_length=4096)
    """Links that may touch, beside those of the SRDF and neighbours in the URDF."""
    margin: float = Field(default=0.02, gt=0, le=1)
    """How near two links may come, m; a chunk is checked so finely that none moves further than that unseen."""
    boxes: tuple[Box, ...] = Field(default=(), max_length=256)
    """Where links must stay."""
