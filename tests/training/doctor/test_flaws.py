"""Each flaw is named where it is, and a sound twin of the same recordings is not accused of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ki_robot.contract.contract import Contract
from training.doctor.diagnose import unit_findings
from training.doctor.findings import Finding

Examined = Callable[..., list[Finding]]
JOINT, BASE = 'joint1/position', 'base/linear/x/velocity'


def named(findings: list[Finding], kind: str) -> list[Finding]:
    return [finding for finding in findings if finding.kind == kind]


def test_sound_recordings_are_accused_of_nothing(sound: list[Any], examined: Examined) -> None:
    assert [finding for finding in examined(sound) if finding.level != 'note'] == []


def spoilt(sound: list[Any], column: int, values: Callable[[np.ndarray], np.ndarray]) -> list[Any]:
    """The same recordings with other actions in one column."""
    changed = []
    for each in sound:
        action = each.action.copy()
        action[:, column] = values(action[:, column])
        changed.append(each.with_(action=action))
    return changed


@pytest.mark.parametrize(
    ('kind', 'values'),
    [
        ('constant_action', lambda course: np.full_like(course, 0.3)),
        ('opposite', lambda course: -course),
        ('unrelated', lambda course: 0.5 * np.sin(0.31 * np.arange(len(course)))),
        ('lag', lambda course: np.concatenate([np.repeat(course[:1], 10), course[:-10]])),
    ],
)
def test_actions_that_do_not_move_the_robot_are_named_by_column(
    kind: str, values: Callable[[np.ndarray], np.ndarray], sound: list[Any], examined: Examined
) -> None:
    found = named(examined(spoilt(sound, 0, values)), kind)
    assert [finding.field for finding in found] == [JOINT]
    assert found[0].level == 'warning'
    assert found[0].places


def test_a_robot_that_does_not_answer_is_named(sound: list[Any], examined: Examined) -> None:
    deaf = [each.with_(state=np.column_stack([np.full(len(each.state), 0.2), each.state[:, 1:]])) for each in sound]
    assert [finding.field for finding in named(examined(deaf), 'no_response')] == [JOINT]


def test_a_robot_that_answers_a_second_late_has_two_clocks(sound: list[Any], examined: Examined, kit: Any) -> None:
    late = [
        each.with_(state=np.column_stack([kit.followed(each.action, 20)[:, :1], each.state[:, 1:]])) for each in sound
    ]
    [lag] = named(examined(late), 'lag')
    assert lag.field == JOINT
    assert 'after 1.00 s' in lag.text


def test_a_camera_that_shows_the_robot_at_another_time_is_named(sound: list[Any], examined: Examined, kit: Any) -> None:
    skewed = [
        each.with_(pictures={**each.pictures, 'wrist': kit.seen(each.state, number + 1, late=8)})
        for number, each in enumerate(sound)
    ]
    [skew] = named(examined(skewed), 'skew')
    assert skew.field == 'wrist'
    assert '0.40 s after' in skew.text


def test_an_episode_that_shakes_and_a_command_that_jumps_are_shown(sound: list[Any], examined: Examined) -> None:
    shaky = sound[2].action + 0.03 * np.random.default_rng(0).normal(size=sound[2].action.shape)
    jumpy = sound[1].action.copy()
    jumpy[80, 0] += 1.5
    findings = examined([sound[0], sound[1].with_(action=jumpy), sound[2].with_(action=shaky), sound[3]])
    [jerk] = named(findings, 'jerk')
    assert [place.episode for place in jerk.places] == [2]
    [jump] = [finding for finding in named(findings, 'jump') if finding.field == JOINT]
    assert jump.places[0].episode == 1
    assert jump.places[0].first <= 80 < jump.places[0].end


def test_waiting_is_found_where_it_is(sound: list[Any], examined: Examined, kit: Any) -> None:
    def wait(values: np.ndarray) -> np.ndarray:
        return np.concatenate([values, np.repeat(values[-1:], 60, axis=0)])

    resting = [sound[0].action.copy(), sound[0].state.copy()]
    for each in resting:
        each[-2:, 3] = 0.0  # the base stands
    first = kit.Take(
        wait(resting[1]), wait(resting[0]), {camera: wait(sound[0].pictures[camera]) for camera in kit.CAMERAS}, 'lift'
    )
    [idle] = named(examined([first, *sound[1:]]), 'idle')
    assert idle.places[0].episode == 0
    assert idle.places[0].first == pytest.approx(160, abs=12)
    assert idle.places[0].end == 220


def test_a_copy_of_an_episode_is_named_and_a_second_try_is_not(sound: list[Any], examined: Examined, kit: Any) -> None:
    noise = np.random.default_rng(1).normal(size=sound[1].state.shape) * 1e-5
    copy = sound[1].with_(state=sound[1].state + noise)
    [duplicate] = named(examined([*sound, copy]), 'duplicate')
    assert [place.episode for place in duplicate.places] == [4]
    elsewhere = copy.with_(pictures={camera: kit.seen(copy.state, 50) for camera in kit.CAMERAS})
    assert not named(examined([*sound, elsewhere]), 'duplicate')
    told_otherwise = copy.with_(words='close the drawer')
    assert not named(examined([*sound, told_otherwise]), 'duplicate')


def test_the_same_sight_with_another_action_is_a_contradiction(examined: Examined, kit: Any) -> None:
    """One state and one picture, from which one episode goes left and the other goes right."""
    state = np.zeros((120, 4))
    state[60:] = kit.wanted(3, 60) - kit.wanted(3, 60)[:1]

    def going(way: float, words: str = 'sort it') -> Any:
        action = state.copy()
        action[:, 0] = way * 0.3
        pictures = {camera: kit.seen(np.zeros((120, 4)), 5) for camera in kit.CAMERAS}
        return kit.Take(state, action, pictures, words)

    assert named(examined([going(1.0), going(-1.0)]), 'contradiction')
    assert not named(examined([going(1.0), going(1.0)]), 'contradiction')
    assert not named(examined([going(1.0, 'sort it left'), going(-1.0, 'sort it right')]), 'contradiction')


def test_a_camera_that_died_in_one_episode_is_named(sound: list[Any], examined: Examined) -> None:
    still = np.repeat(sound[2].pictures['wrist'][:1], len(sound[2].state), axis=0)
    dead = sound[2].with_(pictures={**sound[2].pictures, 'wrist': still})
    [frozen] = named(examined([*sound[:2], dead, sound[3]]), 'frozen')
    assert (frozen.field, [place.episode for place in frozen.places]) == ('wrist', [2])


@pytest.mark.parametrize(('kind', 'light', 'offset'), [('overexposed', 4.0, 1.0), ('underexposed', 0.02, 2.0)])
def test_light_that_hides_everything_is_named(
    kind: str, light: float, offset: float, sound: list[Any], examined: Examined
) -> None:
    def lit(pictures: np.ndarray) -> np.ndarray:
        return np.clip(pictures.astype(np.float64) * light + offset, 0, 255).astype(np.uint8)

    odd = [each.with_(pictures={**each.pictures, 'scene': lit(each.pictures['scene'])}) for each in sound]
    assert [finding.field for finding in named(examined(odd), kind)] == ['scene']


def test_one_episode_under_another_light_is_a_note(sound: list[Any], examined: Examined) -> None:
    bright = (sound[3].pictures['scene'] // 3 + 160).astype(np.uint8)
    findings = examined([*sound[:3], sound[3].with_(pictures={**sound[3].pictures, 'scene': bright})])
    [brightness] = named(findings, 'brightness')
    assert (brightness.field, brightness.level, brightness.places[0].episode) == ('scene', 'note', 3)


@pytest.mark.parametrize('words', ['', 'N/A', 'task'])
def test_an_episode_without_words_is_counted(words: str, sound: list[Any], examined: Examined) -> None:
    [missing] = named(examined([*sound[:3], sound[3].with_(words=words)]), 'some_language')
    assert missing.text.startswith('1 of 4')
    assert [place.episode for place in missing.places] == [3]


def test_words_that_say_nothing_are_none(sound: list[Any], examined: Examined) -> None:
    findings = examined([each.with_(words=words) for each, words in zip(sound, ['', '  ', 'N/A', 'task'], strict=True)])
    assert [finding.level for finding in named(findings, 'no_language')] == ['error']


def test_recordings_too_short_to_tell_are_not_accused_of_their_motion(sound: list[Any], examined: Examined) -> None:
    def cut(each: Any) -> Any:
        pictures = {camera: shown[:40] for camera, shown in each.pictures.items()}
        return each.with_(state=each.state[:40], action=np.roll(each.action, 20, axis=0)[:40], pictures=pictures)

    assert not {'unrelated', 'opposite', 'lag'} & {finding.kind for finding in examined([cut(each) for each in sound])}


@pytest.mark.parametrize(
    ('words', 'is_one'),
    [
        ('Lift the  cup.', True),
        ('lift the cups', False),
        ('liftt the cup', True),
        ('lift the cap', False),
        ('lift the red cup', False),
        ('lift the cup 2', False),
    ],
)
def test_two_spellings_of_one_task_are_told_from_two_tasks(
    words: str, is_one: bool, sound: list[Any], examined: Examined
) -> None:
    assert bool(named(examined([*sound[:3], sound[3].with_(words=words)]), 'similar')) is is_one


def test_the_contract_decides_what_is_a_wrong_unit(toy: Contract) -> None:
    lift, joint = toy.actions[2], toy.actions[0]

    def judged(column: Any, largest: float, lower: float, upper: float) -> list[str]:
        limits = column.limits.replace(lower=lower, upper=upper)
        return [finding.kind for finding in unit_findings('action', column, 0.0, largest, limits)]

    assert judged(lift, 2.0, 0.0, 2.2) == [], 'a lift of two metres'
    assert judged(joint, 30.0, -40.0, 40.0) == [], 'a drum that turns five times'
    assert judged(lift, 1.0, 0.0, 0.08) == ['unit'], 'an opening of 0..1 where 8 cm are the limit'
    assert judged(joint, 80.0, -3.0, 3.0) == ['degrees']
    assert judged(joint, 3.2, -3.0, 3.0) == [], 'an overshoot is no unit'
