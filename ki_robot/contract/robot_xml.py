"""Reads the XML that describes a robot, URDF or SRDF, without trusting it."""

from __future__ import annotations

from xml.etree import ElementTree

from ki_common.errors import shown
from ki_robot.errors import RobotError


def robot_element(text: str, where: str, kind: str = 'URDF') -> ElementTree.Element:
    """The element <robot> of a URDF or an SRDF.

    Args:
        text: The document.
        where: The file, for the error.
        kind: URDF or SRDF, for the error.

    Raises:
        RobotError: No XML, another document, or a document type (its entities can blow up).
    """
    if '<!DOCTYPE' in text or '<!ENTITY' in text:
        raise RobotError(f'{where} has a document type or entities; a {kind} needs none, expand it with xacro.')
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, RecursionError) as error:
        raise RobotError(f'{where} is not XML: {error}.') from error
    if root.tag != 'robot':
        raise RobotError(f'{where} begins with the element {shown(root.tag)}; a {kind} begins with <robot>.')
    return root
