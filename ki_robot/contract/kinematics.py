"""The kinematics part of a contract: hands whose poses are columns, and the chain of joints that carries them.

A contract that is read from its file takes the chain out of the URDF and keeps it (`chain`): the same contract in a
bundle or an index needs no other file, and its hash covers what the numbers of a hand mean.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal
from xml.etree import ElementTree

from pydantic import Field, model_validator
from typing_extensions import Self

from ki_common.errors import shown
from ki_robot.contract.names import Frame, Name, duplicates
from ki_robot.contract.parts import ContractPart
from ki_robot.contract.robot_xml import robot_element
from ki_robot.errors import RobotError

MAX_CHAIN = 200_000  # characters
KINDS = ('revolute', 'continuous', 'prismatic', 'fixed')


class HandFrame(ContractPart):
    """A frame of the robot whose pose is measured by forward kinematics, and commanded by inverse kinematics."""

    unhashed = ('tolerance_m', 'tolerance_rad')

    name: Name
    """What columns begin with: left_hand/x/position; state columns name it as their source."""
    base: Frame
    """Link of the URDF in whose frame poses are said, such as base_link."""
    tip: Frame
    """Link of the URDF whose pose it is, such as tool0."""
    down: Literal['x', 'z'] = 'z'
    """Which axis of the tip points down where the rotation is said by yaw alone."""
    delta: Literal['base', 'tip'] = 'base'
    """In whose axes delta actions are: of the base frame, or of the tip where it was measured."""
    tolerance_m: float = Field(default=0.005, gt=0, le=1)
    """A pose that is missed by more counts as out of reach, m; the arm then holds where it is."""
    tolerance_rad: float = Field(default=0.05, gt=0, le=4)
    """The same of its rotation, rad; 4 for an arm of fewer joints, which gives up rotation for position."""


class Kinematics(ContractPart):
    """Which hands there are, and the URDF that says how joints carry them. Needs the extra `space` (pin)."""

    unhashed = ('urdf',)

    hands: tuple[HandFrame, ...] = Field(min_length=1, max_length=16)
    """The hands."""
    urdf: str = Field(default='', max_length=4096)
    """The robot's URDF (xacro expanded), a path relative to the contract's file."""
    chain: str = Field(default='', max_length=MAX_CHAIN)
    """The joints of the URDF that carry the hands, as URDF; filled in when the contract is read from its file."""

    @model_validator(mode='after')
    def _parts_fit_together(self) -> Self:
        for name in duplicates(hand.name for hand in self.hands):
            raise ValueError(f'hands names {name!r} twice; names are unique, rename or drop one')
        if not self.urdf and not self.chain:
            raise ValueError('urdf is missing; write the path of the URDF, relative to the file of the contract')
        if self.chain:
            try:
                chain_of(self.chain, self.hands, 'chain')
            except RobotError as error:
                raise ValueError(f'chain: {error}') from None
        return self

    def joints_of(self, hand: HandFrame) -> tuple[str, ...]:
        """The movable joints between base and tip of a hand, from the base on; empty before the chain is known."""
        if not self.chain:
            return ()
        joints = _joints(robot_element(self.chain, 'chain'), 'chain')
        return tuple(name for name in _between(joints, hand, 'chain') if _kind(joints[name]) != 'fixed')


def chain_of(text: str, hands: Iterable[HandFrame], where: str) -> str:
    """The joints of a URDF that carry some hands, as a URDF without anything else.

    A joint that turns without end becomes revolute, so that it has one coordinate.

    Raises:
        RobotError: No URDF, a link that it lacks, or a joint on the way that no command moves alone.
    """
    root = robot_element(text, where)
    joints = _joints(root, where)
    needed: dict[str, None] = {}
    carrying: set[str] = set()
    for hand in hands:
        between = _between(joints, hand, where)
        for name in between:
            _refuse_strange(joints[name], where)
        if all(_kind(joints[name]) == 'fixed' for name in between):
            raise RobotError(f'{where}: no joint moves {hand.tip} against {hand.base} (hand {hand.name}).')
        carrying.update(between)
        for link in (hand.base, hand.tip):
            needed.update(dict.fromkeys(_up(joints, link)))
    links = dict.fromkeys(
        link for name in sorted(needed) for link in (_link(joints[name], 'parent'), _link(joints[name], 'child'))
    )
    made = ElementTree.Element('robot', name='chain')
    for link in links:
        ElementTree.SubElement(made, 'link', name=link)
    for name in sorted(needed):
        made.append(_bare(joints[name], name in carrying))
    return ElementTree.tostring(made, encoding='unicode')


def _joints(root: ElementTree.Element, where: str) -> Mapping[str, ElementTree.Element]:
    """The joints by name; each link has at most one above it."""
    found = {joint.get('name', ''): joint for joint in root.findall('joint')}
    for child in duplicates(_link(joint, 'child') for joint in found.values()):
        raise RobotError(f'{where}: link {shown(child)} hangs on two joints; a URDF is a tree, correct it.')
    return found


def _link(joint: ElementTree.Element, end: str) -> str:
    found = joint.find(end)
    return '' if found is None else found.get('link', '')


def _kind(joint: ElementTree.Element) -> str:
    return joint.get('type', '')


def _up(joints: Mapping[str, ElementTree.Element], link: str) -> list[str]:
    """The joints from a link up to the root, nearest first."""
    above = {_link(joint, 'child'): name for name, joint in joints.items()}
    found: list[str] = []
    while link in above and above[link] not in found:
        found.append(above[link])
        link = _link(joints[above[link]], 'parent')
    return found


def _between(joints: Mapping[str, ElementTree.Element], hand: HandFrame, where: str) -> list[str]:
    """The joints on the way from a hand's base to its tip."""
    links = {_link(joint, end) for joint in joints.values() for end in ('parent', 'child')}
    for field, link in (('base', hand.base), ('tip', hand.tip)):
        if link not in links:
            known = ', '.join(sorted(links))
            raise RobotError(f'{where} has no link {shown(link)} ({field} of hand {hand.name}); it has {known[:400]}.')
    base, tip = _up(joints, hand.base), _up(joints, hand.tip)
    shared = set(base) & set(tip)
    for name in base:
        if name not in shared and _kind(joints[name]) != 'fixed':
            raise RobotError(
                f'{where}: joint {name!r} moves {hand.base}, the base of hand {hand.name}, against what carries the '
                'hand; name a link below or beside it.'
            )
    return [name for name in base if name not in shared] + [name for name in reversed(tip) if name not in shared]


def _refuse_strange(joint: ElementTree.Element, where: str) -> None:
    name, kind = joint.get('name', ''), _kind(joint)
    if kind not in KINDS:
        raise RobotError(f'{where}: joint {name!r} is {kind or "of no type"}; hands are carried by {", ".join(KINDS)}.')
    if joint.find('mimic') is not None:
        raise RobotError(f'{where}: joint {name!r} follows another (mimic); choose a tip above it.')


def _bare(joint: ElementTree.Element, carries: bool) -> ElementTree.Element:
    """Only what kinematics needs; what moves base and tip alike may stand anywhere, and is fixed."""
    kind = _kind(joint).replace('continuous', 'revolute') if carries else 'fixed'
    made = ElementTree.Element('joint', name=joint.get('name', ''), type=kind)
    for tag, keys in (('origin', ('xyz', 'rpy')), ('parent', ('link',)), ('child', ('link',)), ('axis', ('xyz',))):
        found = joint.find(tag)
        if found is not None:
            values = {key: ' '.join(found.get(key, '').split()) for key in keys if found.get(key)}
            ElementTree.SubElement(made, tag, values)
    if kind != 'fixed':
        # pin wants one; the limits that hold are the contract's
        ElementTree.SubElement(made, 'limit', lower='-100', upper='100', effort='1', velocity='1')
    return made
