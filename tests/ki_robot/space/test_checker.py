"""Chunks that bring links together, or out of their box, are found; others are let pass."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ki_robot.contract.space import Box, Space
from ki_robot.errors import RobotError
from ki_robot.space.checker import SpaceChecker, allowed_by_srdf

pytest.importorskip('pinocchio', reason='pin is not installed: collisions were NOT checked')

JOINTS = 3
LINK_M = 0.3
COLUMNS = [f'{side}_joint{number}/position' for side in ('left', 'right') for number in range(1, JOINTS + 1)]


def arm(side: str, y: float) -> str:
    """A planar arm that swings about z: three links of LINK_M, 6 cm thick."""
    made, parent = [], 'base'
    for number in range(1, JOINTS + 1):
        name, at = f'{side}_link{number}', f'0 {y} 0.5' if number == 1 else f'{LINK_M} 0 0'
        made.append(f"""
          <link name="{name}"><collision><origin xyz="{LINK_M / 2} 0 0"/>
            <geometry><box size="{LINK_M - 0.1} 0.06 0.06"/></geometry></collision></link>
          <joint name="{side}_joint{number}" type="revolute"><parent link="{parent}"/><child link="{name}"/>
            <origin xyz="{at}"/><axis xyz="0 0 1"/><limit lower="-3" upper="3" velocity="2" effort="9"/></joint>""")
        parent = name
    made.append(f"""<link name="{side}_tool"/><joint name="{side}_mount" type="fixed"><parent link="{parent}"/>
          <child link="{side}_tool"/><origin xyz="{LINK_M} 0 0"/></joint>""")
    return ''.join(made)


URDF = f'<robot name="two"><link name="base"/>{arm("left", 0.3)}{arm("right", -0.3)}</robot>'
SRDF = """<robot name="two">
  <disable_collisions link1="left_link3" link2="right_link3" reason="Never"/>
</robot>"""


@pytest.fixture
def checker(tmp_path: Path) -> Callable[..., SpaceChecker]:
    """Makes a checker of the two-armed robot."""
    (tmp_path / 'two.urdf').write_text(URDF)
    (tmp_path / 'two.srdf').write_text(SRDF)
    return lambda **fields: SpaceChecker(Space(urdf='two.urdf', **fields), COLUMNS, tmp_path)


def swing(degrees: float, steps: int = 50) -> np.ndarray:
    """Both arms turn towards each other, evenly."""
    turn_H = np.radians(degrees) * np.arange(1, steps + 1) / steps
    values_HN = np.zeros((steps, len(COLUMNS)))
    values_HN[:, 0], values_HN[:, JOINTS] = -turn_H, turn_H
    return values_HN


REST = np.zeros(len(COLUMNS))


def test_arms_side_by_side_may_move(checker: Callable[..., SpaceChecker]) -> None:
    made = checker()
    assert made.check(swing(10), REST) is None
    assert made.check(swing(-60), REST) is None


def test_arms_that_would_meet_are_named_with_the_step(checker: Callable[..., SpaceChecker]) -> None:
    found = checker().check(swing(40), REST)
    assert found is not None
    assert set(found.links) == {'left_link3', 'right_link3'}
    # The tips, 0.85 m out, meet where 0.85 sin(a) + 0.03 cos(a) = 0.3 less half the margin: 18 degrees of 40.
    assert 20 <= found.step <= 25
    assert found.text.startswith(f'step {found.step} brings ')


def test_links_do_not_pass_through_each_other_between_two_steps(checker: Callable[..., SpaceChecker]) -> None:
    # One step from one side to the other: no step itself is anywhere near.
    far = np.zeros((1, len(COLUMNS)))
    far[0, JOINTS] = 2.4  # the right arm swings across the left one and beyond
    found = checker().check(far, REST)
    assert found is not None
    assert any(link.startswith('left') for link in found.links)


def test_what_the_srdf_or_the_contract_allows_may_touch(checker: Callable[..., SpaceChecker]) -> None:
    srdf = checker(srdf='two.srdf')
    named = checker(allowed_pairs=(('left_link3', 'right_link3'),))
    for made in (srdf, named):
        assert ('left_link3', 'right_link3') not in made.pairs
        found = made.check(swing(19), REST)
        assert found is None or set(found.links) != {'left_link3', 'right_link3'}


def test_neighbours_in_the_urdf_are_no_pair(checker: Callable[..., SpaceChecker]) -> None:
    pairs = checker().pairs
    assert ('left_link1', 'left_link2') not in pairs
    assert ('left_link1', 'left_link3') in pairs
    assert len(pairs) == 6 * 5 // 2 - 2 * 2


def test_a_robot_that_is_too_near_already_may_leave_and_not_come_nearer(checker: Callable[..., SpaceChecker]) -> None:
    made = checker()
    touching = swing(18)[-1]
    assert made.check(np.stack([touching]), touching) is None
    assert made.check(touching - swing(10), touching) is None
    nearer = made.check(touching + swing(3), touching)
    assert nearer is not None


def test_a_frame_stays_in_its_box_and_may_come_back(checker: Callable[..., SpaceChecker]) -> None:
    made = checker(boxes=(Box(frame='left_tool', lower=(0.5, 0.0, 0.0), upper=(2.0, 2.0, 2.0)),))
    assert made.check(swing(-30), REST) is None
    found = made.check(swing(-80), REST)
    assert found is not None
    assert found.links == ('left_tool',)
    assert 'out of its box' in found.text
    outside = swing(-80)[-1]
    assert made.check(outside + swing(30), outside) is None


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), reach=st.floats(0.01, 0.3))
def test_no_collision_that_a_fine_look_finds_is_missed(tmp_path_factory, seed: int, reach: float) -> None:
    folder = tmp_path_factory.getbasetemp() / 'space'
    folder.mkdir(exist_ok=True)
    (folder / 'two.urdf').write_text(URDF)
    made = SpaceChecker(Space(urdf='two.urdf', margin=0.01), COLUMNS, folder)
    rng = np.random.default_rng(seed)
    values_HN = np.cumsum(rng.uniform(-reach, reach, (20, len(COLUMNS))), axis=0)
    found = made.check(values_HN, REST)
    ways = np.concatenate([REST[None], values_HN])
    for step, (one, other) in enumerate(itertools.pairwise(ways)):
        if found is not None and step >= found.step:
            break
        for share in np.linspace(0, 1, 20):
            assert made.nearest(one + share * (other - one)) > 0, (step, share)
    if found is not None:  # and nothing is refused that is nowhere near
        one, other = ways[found.step], ways[found.step + 1]
        nearest = np.inf
        for share in np.linspace(0, 1, 200):
            made._place(made._configuration(one + share * (other - one)))
            nearest = min(nearest, made._distance(made.pairs.index(found.links)))
        assert nearest < 0.012


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'allowed_pairs': (('left_link9', 'base'),)}, r"no link 'left_link9'; write one of "),
        ({'boxes': (Box(frame='hand', lower=(0, 0, 0), upper=(1, 1, 1)),)}, r"no link 'hand'; write one of "),
        ({'srdf': 'nowhere.srdf'}, r'nowhere\.srdf'),
    ],
)
def test_what_the_urdf_does_not_have_is_named(checker: Callable[..., SpaceChecker], fields: dict, says: str) -> None:
    with pytest.raises(RobotError, match=says):
        checker(**fields)


def test_a_urdf_of_another_robot_is_refused(tmp_path: Path) -> None:
    (tmp_path / 'two.urdf').write_text(URDF)
    with pytest.raises(RobotError, match=r'has no joint of the action columns arm_joint1/position'):
        SpaceChecker(Space(urdf='two.urdf'), ['arm_joint1/position'], tmp_path)
    (tmp_path / 'bad.urdf').write_text('<robot')
    with pytest.raises(RobotError, match=r'bad\.urdf is no usable URDF'):
        SpaceChecker(Space(urdf='bad.urdf'), COLUMNS, tmp_path)


def test_a_box_without_room_is_refused() -> None:
    with pytest.raises(RobotError, match=r'lower is .* not below upper'):
        Box(frame='tool', lower=(0, 0, 1), upper=(1, 1, 1))


@pytest.mark.parametrize('text', ['<robot', '<!DOCTYPE robot><robot/>'])
def test_an_srdf_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(RobotError, match=r'SRDF|XML'):
        allowed_by_srdf(text, 'two.srdf')
