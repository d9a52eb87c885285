"""Whether a chunk would bring two links together, or a link out of its box: checked as a whole before it is followed.

Links are those of the robot's URDF, with its collision geometry; distances are computed by `coal` on `pinocchio`'s
kinematics. Every pair has a budget: its distance when it was last measured, less what its two links can have moved
towards each other since. It is measured again when the budget is used up, so a chunk costs few measurements and none is
missed. Between two steps a pair that may have met is looked at as finely as it takes.

A robot that is already too near somewhere may move away: a pair that is nearer than the margin where the chunk starts
may not come nearer still, and a frame that is outside its box there may not go further out.

Q joint coordinates, P pairs of links, N action columns, H steps.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ki_common.configuration.yaml_reader import read_text
from ki_common.errors import shown
from ki_robot.contract.robot_xml import robot_element
from ki_robot.contract.space import Space
from ki_robot.errors import RobotError

CREEP_M = 1e-3  # a pair that is too near at the start may come nearer by so little: measurements are noisy
FINEST_M = 1e-4  # of motion: two links that cannot be told apart any finer count as touching

Matrix = NDArray[np.float64]
Pair = tuple[str, str]


@dataclass(frozen=True)
class Violation:
    """Why a chunk is not followed: at which step, what is where it must not be."""

    step: int
    links: tuple[str, ...]
    text: str


class SpaceChecker:
    """Checks chunks of one robot.

    Args:
        space: The contract's part.
        columns: Action columns of the chunks, by ros2_control interface name; those of the form JOINT/position of the
            URDF are moved, all others change nothing here.
        folder: Of the contract's file.

    Raises:
        RobotError: pin or coal is not installed, a file cannot be read, a link is unknown, or no column is a joint.
    """

    def __init__(self, space: Space, columns: Sequence[str], folder: Path) -> None:
        self._pin = _pinocchio()
        self._space = space
        urdf = folder / space.urdf
        text = read_text(urdf, RobotError)
        try:
            self._model = self._pin.buildModelFromXML(text)
            self._geometry = self._pin.buildGeomFromUrdfString(
                self._model, text, self._pin.GeometryType.COLLISION, package_dirs=_package_folders(urdf.parent)
            )
        except (ValueError, RuntimeError) as error:
            raise RobotError(f'{urdf} is no usable URDF: {str(error).strip().splitlines()[0]}.') from error
        self._where = self._places(columns, urdf)
        self._rest_Q = np.asarray(self._pin.neutral(self._model), float)
        self._frames = [(self._frame(box.frame, urdf), box) for box in space.boxes]
        allowed = {frozenset(pair) for pair in space.allowed_pairs}
        for link in sorted({link for pair in space.allowed_pairs for link in pair}):
            self._frame(link, urdf)
        if space.srdf:
            allowed |= allowed_by_srdf(read_text(folder / space.srdf, RobotError), str(folder / space.srdf))
        self.pairs = self._keep_pairs(allowed)
        self._data = self._model.createData()
        self._found = self._pin.GeometryData(self._geometry)
        self._reach_QP = self._reaches()

    def check(self, values_HN: Matrix, start_N: Matrix) -> Violation | None:
        """The first violation of a chunk, None where there is none.

        Args:
            values_HN: Positions of the columns, step by step, SI.
            start_N: Where the robot is when the first step begins; NaN for a column that nobody knows yet, which then
                begins at its first step.
        """
        start_N = np.where(np.isfinite(start_N), start_N, values_HN[0])
        at_HQ = np.stack([self._configuration(values_N) for values_N in (start_N, *values_HN)])
        moved_HP = np.abs(np.diff(at_HQ, axis=0)) @ self._reach_QP
        self._place(at_HQ[0])
        distance_P = np.array([self._distance(pair) for pair in range(len(self.pairs))])
        # What each pair must keep: the margin, or where it is nearer already, that.
        least_P = np.minimum(self._space.margin, distance_P - CREEP_M)
        outside = self._outside()
        for step, (before_Q, at_Q, moved_P) in enumerate(zip(at_HQ[:-1], at_HQ[1:], moved_HP, strict=True)):
            budget_P = distance_P - moved_P
            due = [int(pair) for pair in np.flatnonzero(budget_P < least_P)]
            if due or self._frames:
                self._place(at_Q)
            measured = {pair: self._distance(pair) for pair in due}
            for number, depth in self._outside().items():
                if depth > outside.get(number, 0.0) + CREEP_M:
                    frame = self._frames[number][1].frame
                    return Violation(step, (frame,), f'step {step} takes {frame} {depth * 1e3:.0f} mm out of its box')
            for pair, distance in measured.items():
                near = distance < least_P[pair]
                if near or self._meet(pair, before_Q, at_Q, distance_P[pair], distance, moved_P[pair]):
                    one, other = self.pairs[pair]
                    gap = max(distance, 0.0) * 1e3 if near else 0.0
                    return Violation(step, (one, other), f'step {step} brings {one} within {gap:.0f} mm of {other}')
                budget_P[pair] = distance
            distance_P = budget_P
        return None

    def nearest(self, values_N: Sequence[float]) -> float:
        """The least distance of any pair at these positions of the columns, m; below 0 where two overlap."""
        self._place(self._configuration(np.asarray(values_N, float)))
        return min(self._distance(pair) for pair in range(len(self.pairs)))

    def _meet(self, pair: int, one_Q: Matrix, other_Q: Matrix, one: float, other: float, moved: float) -> bool:
        """Whether a pair touches on the straight way between two configurations.

        `one`, `other`: its distance (or a lower bound of it) at the ends; `moved`: its greatest change on the way.
        """
        if one + other > moved or min(one, other) <= 0:  # out of reach, or in touch from the beginning
            return False
        if moved < FINEST_M:
            return True
        middle_Q = (one_Q + other_Q) / 2
        self._place(middle_Q)
        middle = self._distance(pair)
        halves = ((one_Q, middle_Q, one, middle), (middle_Q, other_Q, middle, other))
        return middle <= 0 or any(self._meet(pair, *half, moved / 2) for half in halves)

    # -- kinematics

    def _configuration(self, values_N: Matrix) -> Matrix:
        found_Q: Matrix = self._rest_Q.copy()
        for column, place in self._where:
            found_Q[place] = values_N[column]
        return found_Q

    def _place(self, at_Q: Matrix) -> None:
        self._pin.updateGeometryPlacements(self._model, self._data, self._geometry, self._found, at_Q)

    def _distance(self, pair: int) -> float:
        return float(self._pin.computeDistance(self._geometry, self._found, pair).min_distance)

    def _outside(self) -> dict[int, float]:
        """How far frames are outside their boxes, m, by number of the box; those inside are left out."""
        found = {}
        for number, (frame, box) in enumerate(self._frames):
            at = self._pin.updateFramePlacement(self._model, self._data, frame).translation
            depth = float(max(np.max(np.asarray(box.lower) - at), np.max(at - np.asarray(box.upper))))
            if depth > 0:
                found[number] = depth
        return found

    # -- set-up

    def _places(self, columns: Sequence[str], urdf: Path) -> list[tuple[int, int]]:
        found = []
        for number, column in enumerate(columns):
            joint, _, interface = column.rpartition('/')
            if interface == 'position' and self._model.existJointName(joint):
                index = self._model.getJointId(joint)
                if self._model.joints[index].nq != 1:
                    raise RobotError(f'{urdf}: joint {joint!r} turns without end; give it type revolute with limits.')
                found.append((number, self._model.joints[index].idx_q))
        if not found:
            raise RobotError(f'{urdf} has no joint of the action columns {", ".join(columns)}; is it of this robot?')
        return found

    def _frame(self, link: str, urdf: Path) -> int:
        if not self._model.existBodyName(link):
            known = ', '.join(frame.name for frame in self._model.frames if self._model.existBodyName(frame.name))
            raise RobotError(f'{urdf} has no link {shown(link)}; write one of {known}.')
        return int(self._model.getFrameId(link))

    def _keep_pairs(self, allowed: set[frozenset[str]]) -> list[Pair]:
        """Leaves the pairs that must not touch: not of one rigid body, not neighbours, not allowed."""
        model, geometry = self._model, self._geometry
        geometry.addAllCollisionPairs()
        links = [model.frames[each.parentFrame].name for each in geometry.geometryObjects]
        bodies = [int(each.parentJoint) for each in geometry.geometryObjects]
        parents = [int(each) for each in model.parents]
        kept = []
        for one, other in [(int(pair.first), int(pair.second)) for pair in geometry.collisionPairs]:
            joined = bodies[one] == bodies[other]
            joined = joined or parents[bodies[one]] == bodies[other] or parents[bodies[other]] == bodies[one]
            if joined or frozenset((links[one], links[other])) in allowed:
                geometry.removeCollisionPair(self._pin.CollisionPair(one, other))
            else:
                kept.append((links[one], links[other]))
        return kept

    def _reaches(self) -> Matrix:
        """How much nearer two links can come when a coordinate changes by one unit, (Q, P): m/rad, or 1 for a slide.

        A joint that carries both links, or neither, changes nothing between them. One that carries one of them moves
        its farthest point at most by the length of the way from the joint to that point.
        """
        model, geometry = self._model, self._geometry
        sizes = []
        for each in geometry.geometryObjects:
            shape = each.geometry
            shape.computeLocalAABB()
            centre = each.placement.translation + each.placement.rotation @ shape.aabb_center
            sizes.append((int(each.parentJoint), float(np.linalg.norm(centre)) + float(shape.aabb_radius)))
        reach_QP = np.zeros((model.nq, len(self.pairs)))
        for number, pair in enumerate(geometry.collisionPairs):
            ways = [self._way(*sizes[int(each)]) for each in (pair.first, pair.second)]
            for joint in set(ways[0]) ^ set(ways[1]):
                each = model.joints[joint]
                reach = 1.0 if 'Prismatic' in each.shortname() else ways[0].get(joint, ways[1].get(joint, 0.0))
                reach_QP[each.idx_q : each.idx_q + each.nq, number] = reach
        return reach_QP

    def _way(self, joint: int, size: float) -> dict[int, float]:
        """Joint -> greatest distance from it to a point of a shape, m, for every joint that carries the shape."""
        model, found = self._model, {}
        while joint > 0:
            found[joint] = size
            slide, each = 0.0, model.joints[joint]
            if 'Prismatic' in each.shortname():
                ends = (model.lowerPositionLimit[each.idx_q], model.upperPositionLimit[each.idx_q])
                slide = float(max(map(abs, ends)))
            size += float(np.linalg.norm(model.jointPlacements[joint].translation)) + slide
            joint = int(model.parents[joint])
        return found


def allowed_by_srdf(text: str, where: str) -> set[frozenset[str]]:
    """The pairs of links that an SRDF's `disable_collisions` lets touch.

    Raises:
        RobotError: it is not an SRDF.
    """
    root = robot_element(text, where, 'SRDF')
    pairs = root.findall('disable_collisions')
    return {frozenset((pair.get('link1', ''), pair.get('link2', ''))) for pair in pairs}


def _pinocchio() -> Any:
    try:
        return importlib.import_module('pinocchio')
    except ImportError as error:
        raise RobotError(
            f"The contract's space needs pin and coal ({error}); install them: pip install 'ki_policy_node[space]'."
        ) from error


def _package_folders(own: Path) -> list[str]:
    """Where package:// paths of meshes are looked up: beside the URDF, and in every sourced workspace."""
    prefixes: Iterable[str] = filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep))
    return [str(own), *(str(Path(prefix, 'share')) for prefix in prefixes)]
