"""What hosted CI runs is what a person runs here, on the systems and Pythons that the project names."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding='utf-8'))


def test_hosted_ci_runs_what_runs_here_on_every_python() -> None:
    jobs = read('.github/workflows/ci.yml')['jobs']
    assert any(step.get('run') == '.ci/run' for step in jobs['test']['steps'])
    spec = importlib.util.spec_from_file_location('setup_env', ROOT / 'tools' / 'setup_env.py')
    assert spec is not None
    assert spec.loader is not None
    setup_env = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup_env)
    (major, first), (_, end) = setup_env.PYTHONS
    assert jobs['test']['strategy']['matrix']['python'] == [f'{major}.{minor}' for minor in range(first, end)]


def test_every_folder_of_tests_that_ci_names_exists() -> None:
    text = (ROOT / '.github/workflows/ci.yml').read_text(encoding='utf-8')
    named = re.findall(r'\btests/[\w/]+', text)
    assert named
    assert all((ROOT / name).exists() for name in named)


def test_hooks_before_a_commit_run_what_make_check_runs() -> None:
    [repository] = read('.pre-commit-config.yaml')['repos']
    programs = {hook['entry'].split()[0].rpartition('/')[2] for hook in repository['hooks']}
    recipe = re.search(r'^check:.*\n((?:\t.*\n)+)', (ROOT / 'Makefile').read_text(encoding='utf-8'), re.MULTILINE)
    assert recipe is not None
    assert programs == set(re.findall(r'\$\(BIN\)/(\w+)', recipe.group(1)))


def test_forms_for_issues_ask_what_a_maintainer_needs() -> None:
    for name in ('bug', 'feature'):
        form = read(f'.github/ISSUE_TEMPLATE/{name}.yml')
        assert {'name', 'description', 'body'} <= set(form)
        assert len({field['id'] for field in form['body']}) == len(form['body'])
