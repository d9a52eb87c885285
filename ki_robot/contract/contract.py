"""The contract of a robot: what it shows to a model, what a model may command, and within which limits.

Read from `config/robots/NAME.yaml`, checked as a whole, hashed. Columns carry the names of ros2_control
interfaces (`left_joint1/position`, `base/linear/x/velocity`); values are SI, angles in radians.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from ki_common.configuration.yaml_reader import read_text
from ki_common.errors import shown
from ki_common.share import share_folders
from ki_robot.contract.kinematics import Kinematics, chain_of
from ki_robot.contract.names import Name
from ki_robot.contract.parts import (
    MAX_AGE_S,
    ActionColumn,
    Camera,
    ContractPart,
    JointColumn,
    Output,
    StateColumn,
    StateStream,
)
from ki_robot.contract.poses import HandSpec, PoseColumns, hand_specs, pose_columns
from ki_robot.contract.robot_columns import robot_parts
from ki_robot.contract.rules import Parts, broken_rules
from ki_robot.contract.space import Space
from ki_robot.errors import RobotError

MAX_ENTRIES = 512  # of each list


class Contract(ContractPart):
    """Everything that policy and robot must agree on; an existing one is sound."""

    always_written = ('image_size', 'sync_tolerance_s', 'outputs')
    unhashed = ('on_far_start', 'start_speed', 'space')

    name: Name
    """Name of the robot."""
    rate_hz: float = Field(gt=0, le=1000)
    """Action steps per second, Hz."""
    horizon: int = Field(ge=1, le=1000)
    """Action steps in a chunk."""
    image_size: int = Field(default=224, ge=16, le=4096)
    """Side of the square that images are resized to for the model, pixels."""
    sync_tolerance_s: float = Field(default=0.1, gt=0, le=MAX_AGE_S)
    """How far apart the stamps of one observation may lie, seconds."""
    cameras: tuple[Camera, ...] = Field(min_length=1, max_length=MAX_ENTRIES)
    """The views of the model, in its order."""
    state_streams: tuple[StateStream, ...] = Field(min_length=1, max_length=MAX_ENTRIES)
    """The topics that state is read from."""
    state: tuple[StateColumn, ...] = Field(min_length=1, max_length=MAX_ENTRIES)
    """The numbers of the state vector, in order."""
    actions: tuple[ActionColumn, ...] = Field(min_length=1, max_length=MAX_ENTRIES)
    """The numbers of an action, in order."""
    kinematics: Kinematics | None = None
    """Hands whose poses are columns, measured and commanded through joints; left out, there are none."""
    joints: tuple[JointColumn, ...] = Field(default=(), max_length=MAX_ENTRIES)
    """What the robot measures and takes below the hands of `kinematics`."""
    outputs: tuple[Output, ...] = Field(default=(), max_length=MAX_ENTRIES)
    """Which controllers the actions go to; left out, the contract serves training and replay only."""
    on_far_start: Literal['refuse', 'approach'] = 'refuse'
    """What to do about a first command far from the robot: refuse the chunk, or go there at start_speed."""
    start_speed: float = Field(default=0.1, gt=0, le=1)
    """Speed of an approach, as a share of each column's velocity limit."""
    space: Space | None = None
    """Which links must not touch, and which boxes they must not leave; left out, only columns are checked."""

    @model_validator(mode='after')
    def _parts_fit_together(self) -> Self:
        for rule in broken_rules(self._parts):
            raise ValueError(rule)
        return self

    @property
    def _parts(self) -> Parts:
        return Parts(
            self.cameras, self.state_streams, self.state, self.actions, self.outputs, self.joints, self.kinematics
        )

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """This contract from its YAML file, with the chain of its hands out of the URDF that it names."""
        contract = super().load(path)
        hands = contract.kinematics
        if hands is None or hands.chain:
            return contract
        urdf = Path(path).parent / hands.urdf
        chain = chain_of(read_text(urdf, RobotError), hands.hands, str(urdf))
        try:
            return contract.replace(kinematics=hands.replace(chain=chain))
        except RobotError as error:
            raise RobotError(f'{path}: {error}') from None

    @cached_property
    def step_ns(self) -> int:
        """Time between two action steps, nanoseconds."""
        return round(1e9 / self.rate_hz)

    @cached_property
    def streams(self) -> tuple[Camera | StateStream, ...]:
        """What an observation is made of: the cameras in model order, then the state."""
        return (*self.cameras, *self.state_streams)

    @cached_property
    def camera_names(self) -> tuple[str, ...]:
        """The views in model order."""
        return tuple(camera.name for camera in self.cameras)

    @cached_property
    def state_names(self) -> tuple[str, ...]:
        """The columns of the state vector, in order."""
        return tuple(column.name for column in self.state)

    @cached_property
    def action_names(self) -> tuple[str, ...]:
        """The columns of an action, in order."""
        return tuple(column.name for column in self.actions)

    @cached_property
    def hands(self) -> dict[str, HandSpec]:
        """The hands whose poses are columns, by name: those of `kinematics`, and those that a stream measures."""
        return hand_specs(self.kinematics, self.state_streams, self.state)

    @cached_property
    def state_poses(self) -> tuple[PoseColumns, ...]:
        """The poses in the state vector."""
        return pose_columns(self.state_names, self.hands)

    @cached_property
    def action_poses(self) -> tuple[PoseColumns, ...]:
        """The poses in an action."""
        return pose_columns(self.action_names, self.hands)

    @cached_property
    def robot(self) -> Contract:
        """The same in the robot's own columns: what streams measure and outputs take; itself without hands."""
        changed = robot_parts(self._parts, self.hands) if self.hands else {}
        return self.replace(**changed) if any(getattr(self, name) != each for name, each in changed.items()) else self

    @cached_property
    def hash(self) -> str:
        """sha256 (hex) of the canonical JSON: independent of the order and layout of the YAML."""
        text = json.dumps(self.hashed(), sort_keys=True, separators=(',', ':'), allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def mismatches(self, other: Contract) -> list[str]:
        """What a model made for `self` would get wrong on `other`: one sentence a field, empty when it fits.

        Topics, ages, limits and outputs are the robot's own affair and are not compared.
        """
        found = []
        for label, value in MODEL_FIELDS.items():
            ours, theirs = value(self), value(other)
            if ours != theirs:
                found.append(f'{label}: the policy has {shown(ours)}, the robot {shown(theirs)}')
        return found


# What a trained policy depends on; the rest of a contract is the robot's own affair.
MODEL_FIELDS: dict[str, Callable[[Contract], object]] = {
    'rate_hz': lambda contract: contract.rate_hz,
    'horizon': lambda contract: contract.horizon,
    'image_size': lambda contract: contract.image_size,
    'cameras (name, in order)': lambda contract: contract.camera_names,
    'cameras (kind)': lambda contract: tuple(camera.kind for camera in contract.cameras),
    'state (name, in order)': lambda contract: contract.state_names,
    'state (unit)': lambda contract: tuple(column.unit for column in contract.state),
    'actions (name, in order)': lambda contract: contract.action_names,
    'actions (unit)': lambda contract: tuple(column.unit for column in contract.actions),
    'actions (representation)': lambda contract: tuple(column.representation for column in contract.actions),
    'state (sign, scale, offset, map)': lambda contract: tuple(column.mapping for column in contract.state),
    'actions (sign, scale, offset, map)': lambda contract: tuple(column.mapping for column in contract.actions),
    'hands (down, delta)': lambda contract: {each.name: (each.down, each.delta) for each in contract.hands.values()},
    'hands (base, tip)': lambda contract: {
        each.name: (each.base, each.tip) for each in (contract.kinematics.hands if contract.kinematics else ())
    },
}


def load_contract(name_or_path: str | Path) -> Contract:
    """The contract of a robot, by file or by bare name.

    A bare name is looked up in this tree's `config/robots`, then in the share folders of an installed package.

    Raises:
        RobotError: No such robot (with the names that exist), or a contract that does not hold.
    """
    return Contract.load(contract_file(name_or_path))


def contract_file(name_or_path: str | Path) -> Path:
    """The file that `load_contract` reads; the paths in a contract are relative to its folder.

    Raises:
        RobotError: No such robot.
    """
    path = Path(name_or_path)
    if path.suffix not in ('.yaml', '.yml') and not path.is_file():
        return _find(str(name_or_path))
    return path


def robot_folders() -> list[Path]:
    """The folders that hold contracts, nearest first."""
    folders = (share / 'config' / 'robots' for share in share_folders('ki_policy_node'))
    return [folder for folder in folders if folder.is_dir()]


def robot_names() -> list[str]:
    """The bare names that `load_contract` takes."""
    return sorted({path.stem for folder in robot_folders() for path in folder.glob('*.yaml')})


def _find(name: str) -> Path:
    if name in robot_names():
        return next(path for path in (folder / f'{name}.yaml' for folder in robot_folders()) if path.is_file())
    known = ', '.join(robot_names()) or 'none'
    raise RobotError(f'No robot is called {shown(name)}; known are {known}. Name one, or give the path of a YAML file.')
