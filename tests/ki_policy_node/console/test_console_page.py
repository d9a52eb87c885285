"""The console in a real browser, with the real nodes: dry run, run, a dead camera, stop, an operator who is lost.

KI_SCREENSHOTS=docs/pictures/session makes the pictures of docs/how-to/console.md anew.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ki_bags.reader import open_bag
from ki_common.nodes import NODES

pytestmark = pytest.mark.ros
BROWSERS = ('chromium', 'chromium-browser', 'google-chrome')
PHONE = {'width': 360, 'height': 740}


@pytest.fixture(scope='module')
def browser() -> Iterator[Any]:
    """The installed Chromium, driven by Playwright."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip('no Chromium is installed (apt-get install chromium): NOTHING of the console page was checked here')
    api = pytest.importorskip('playwright.sync_api')
    with api.sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=program, args=['--no-sandbox', '--disable-gpu'])
        yield made
        made.close()


@pytest.fixture
def console(rig: Any, rigs: Any) -> str:
    """The address of a console of the rig's robot."""
    parameters = {'robot': rig.contract_file, 'port': 0, 'picture_rate': 2.0}
    process = rigs.Process(NODES['console'], rig.folder / 'console.log', parameters)
    rig.processes.append(process)
    said = 'The console is at '
    rig.until('the console serves', lambda: said in process.text(), 20.0)
    return process.text().partition(said)[2].split()[0]


def opened(browser: Any, address: str, name: str = '', size: dict[str, int] | None = None) -> Any:
    """A page that shows the robot; with a name, one that is in control."""
    page = browser.new_page(viewport=size or {'width': 1280, 'height': 900})
    page.problems = []
    page.on('pageerror', lambda error: page.problems.append(str(error)))
    page.on('console', lambda said: page.problems.append(said.text) if said.type == 'error' else None)
    page.goto(address)
    page.wait_for_selector('#link.good')
    if name:
        page.fill('#name', name)
        page.click('text=Take control')
        shows(page, '#control', f'you ({name})')
    return page


def shows(page: Any, where: str, text: str, seconds: float = 10.0) -> None:
    """Waits until an element says something."""
    try:
        code = '([where, text]) => document.querySelector(where).textContent.includes(text)'
        page.wait_for_function(code, arg=[where, text], timeout=seconds * 1000)
    except Exception as error:
        found = {name: page.text_content(name) for name in ('#executor', '#policy', '#answer', '#alert', where)}
        raise AssertionError(f'{where} does not say {text!r}: {found}') from error


def photograph(page: Any, name: str) -> None:
    """A picture for the docs, where some are wanted."""
    if folder := os.environ.get('KI_SCREENSHOTS'):
        page.evaluate("document.getElementById('answer').textContent = ''")
        page.screenshot(path=Path(folder, f'{name}.png'), animations='disabled')


def test_a_robot_is_run_and_stopped_from_the_page(rig: Any, rigs: Any, browser: Any, console: str) -> None:
    bags = rig.folder / 'bags'
    rig.processes.append(rigs.Process(NODES['recorder'], rig.folder / 'recorder.log', {'folder': str(bags)}))
    rig.start_executor(enabled=False, require_operator=True)
    rig.start_policy(dry_run=True, run_on_activate=False)
    rig.until('both are there', lambda: rig.state.startswith('disabled') and rig.status.state == 2, 20.0)
    # The watcher first: a browser that is busy with a new page beats late, and two silent seconds lose control.
    watcher = opened(browser, console, size=PHONE)
    page = opened(browser, console, 'Ada')
    shows(watcher, '#control', 'Ada; the robot needs a live operator')
    watcher.evaluate("send({do: 'enable'})")
    shows(watcher, '#answer', 'Take control first.')
    wide = watcher.evaluate('document.documentElement.scrollWidth')
    assert wide <= PHONE['width'], 'nothing sticks out on a phone'

    # Dry run: chunks are drawn, pictures come, nothing moves.
    page.fill('#instruction', 'wave <b>twice</b>')
    page.click('text=Tell')
    shows(page, '#answer', 'Told: wave <b>twice</b>')
    assert page.locator('#said option').first.get_attribute('value') == 'wave <b>twice</b>'
    page.click('button[data-do=run]')
    shows(page, '#policy', 'dry run')
    page.wait_for_function('() => chunk !== null && chunk.dry && chunk.rows.length > 0')
    frames = "() => [...document.querySelectorAll('#cameras canvas')].every((each) => each.dataset.frames > 1)"
    page.wait_for_function(frames)
    shows(page, '#executor', 'disabled')
    photograph(page, '1_dry_run')

    # Run.
    page.click('button[data-do=enable]')
    page.click('button[data-do=leave_dry_run]')
    shows(page, '#executor', 'run')
    shows(page, '#driver', 'policy')
    photograph(page, '2_run')

    # An episode with a note, while it runs.
    page.click('button[data-do=record]')
    shows(page, '#episode', 'recording 0: wave <b>twice</b>')
    page.fill('#note', 'the left arm trembled')
    page.click('button[data-outcome=success]')
    shows(page, '#answer', 'Recorded: ')
    shows(page, '#episode', 'not recording')
    bag = open_bag(Path(page.text_content('#answer').removeprefix('Recorded: ')))
    said = {each.topic: bag.decode(each) for each in bag.messages({'/episode_note', '/control_source', '/episode'})}
    assert said['/episode_note'].data == 'the left arm trembled'
    assert said['/control_source'].source == 1
    assert said['/episode'].outcome == 1

    # A camera dies and comes back.
    rig.robot.silent.add('scene')
    shows(page, '#executor', 'scene: the newest message')
    shows(page, '#policy', 'an input is missing, old or wrong')
    assert page.text_content('#executor').startswith('hold')
    photograph(page, '3_hold')
    rig.robot.silent.discard('scene')
    shows(page, '#executor', 'run')
    photograph(page, '4_recovery')

    # The space bar, with a button that has the focus; then back, by the keyboard.
    page.focus('button[data-do=disable]')
    page.keyboard.press('Space')
    shows(page, '#executor', 'fault: The e-stop is pressed.')
    shows(page, '#alert', 'The e-stop is pressed.')
    photograph(page, '5_stop')
    rig.until('in fault', lambda: rig.state == 'fault: The e-stop is pressed.')
    page.focus('button[data-do=release_estop]')
    page.keyboard.press('Enter')
    shows(page, '#answer', 'E-stop released')
    page.click('button[data-do=reset]')
    shows(page, '#executor', 'run')

    # A page that is gone keeps nothing going.
    assert page.problems == []
    gone_s = time.monotonic()
    page.close()
    rig.until('a hold', lambda: rig.state.startswith('hold: The operator is not heard any more'), 5.0)
    assert time.monotonic() - gone_s < 1.5, 'a second, and closing a page'
    shows(watcher, '#control', 'nobody')
    watcher.fill('#name', 'Grace')
    watcher.click('text=Take control')
    watcher.click('button[data-do=enable]')
    shows(watcher, '#executor', 'run')
    watcher.click('button[data-do=stop]')
    shows(watcher, '#policy', 'ready: stopped')
    shows(watcher, '#executor', 'idle')
    assert watcher.problems == []
    watcher.close()
