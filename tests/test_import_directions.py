"""The import table of ARCHITECTURE.md, held: a room imports only the rooms and libraries it may."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = {
    'ki',
    'ki_common',
    'ki_msgs',
    'ki_robot',
    'ki_bags',
    'ki_vla',
    'ki_policy_node',
    'ki_sim',
    'training',
    'tests',
    'benchmarks',
}

# room -> the other rooms it may import. `ki` may import every room, and nothing imports `ki`.
MAY_IMPORT = {
    'ki_common': set(),
    'ki_robot': {'ki_common'},
    'ki_vla': {'ki_common', 'ki_robot'},
    'ki_bags': {'ki_common', 'ki_robot'},
    'training': {'ki_common', 'ki_vla', 'ki_robot', 'ki_bags'},
    'ki_policy_node': {'ki_common', 'ki_vla', 'ki_robot', 'ki_msgs', 'ki_bags'},
    'ki_sim': {'ki_common', 'ki_robot', 'ki_msgs', 'ki_bags', 'ki_policy_node'},
    'ki': ROOMS - {'tests', 'benchmarks'},
}
# room -> heavy libraries it must never import.
NEVER = {
    'ki_common': {'torch', 'rclpy', 'mujoco', 'transformers', 'onnxruntime', 'cv2'},
    'ki_robot': {'torch', 'rclpy', 'mujoco', 'transformers', 'onnxruntime'},
    'ki_bags': {'torch', 'rclpy', 'mujoco', 'transformers', 'onnxruntime'},
    'ki_vla': {'rclpy', 'mujoco'},
    'training': {'rclpy', 'mujoco'},
    'ki_policy_node': {'mujoco'},
    'ki_sim': {'torch', 'transformers'},
}
# what the processes that must not wait for a heavy import may not load, even indirectly
LIGHT_MODULES = [
    'ki_policy_node.executor.executor_node',
    'ki_policy_node.recorder.recorder_node',
    'ki_policy_node.console.console_node',
    'ki_policy_node.console.web_server',
]


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Every absolute module name that a file imports, wherever in the file, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.lineno, node.module


@pytest.mark.parametrize('room', sorted(MAY_IMPORT))
def test_a_room_imports_only_what_the_table_allows(room: str) -> None:
    wrong = []
    for path in sorted((ROOT / room).rglob('*.py')):
        for line, name in imports_of(path):
            top = name.split('.')[0]
            if top in ROOMS and top != room and top not in MAY_IMPORT[room]:
                wrong.append(f'{path.relative_to(ROOT)}:{line} imports {name}')
            if top in NEVER.get(room, set()):
                wrong.append(f'{path.relative_to(ROOT)}:{line} imports {name}')
    assert not wrong, '\n'.join(wrong)


def test_the_node_takes_only_the_engine_and_the_bundle_of_the_model() -> None:
    allowed = ('ki_vla.engine', 'ki_vla.policy', 'ki_vla.remote', 'ki_vla.errors')
    wrong = [
        f'{path.relative_to(ROOT)}:{line} imports {name}'
        for path in sorted((ROOT / 'ki_policy_node').rglob('*.py'))
        for line, name in imports_of(path)
        if name.split('.')[0] == 'ki_vla' and not name.startswith(allowed)
    ]
    assert not wrong, '\n'.join(wrong)


def test_only_the_simulators_node_speaks_ros() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / 'ki_sim').rglob('*.py'))
        for _, name in imports_of(path)
        if name.split('.')[0] in {'rclpy', 'ki_msgs', 'ki_policy_node'} and path.name != 'sim_node.py'
    ]
    assert not wrong, f'only ki_sim/node/sim_node.py may import rclpy, ki_msgs or ki_policy_node: {wrong}'


def test_the_simulators_node_takes_only_the_ros_tools_of_the_other_nodes() -> None:
    names = [name for _, name in imports_of(ROOT / 'ki_sim' / 'node' / 'sim_node.py')]
    wrong = [
        name for name in names if name.startswith('ki_policy_node') and not name.startswith('ki_policy_node.common')
    ]
    assert not wrong, wrong


def test_a_launch_file_imports_launch_and_its_table_of_arguments_alone() -> None:
    """`ros2 launch` runs in the system's Python, where what our rooms need is not installed."""
    allowed = ('subprocess', 'ki_policy_node.common.launch_arguments')
    wrong = [
        f'{path.name}:{line} imports {name}'
        for path in sorted((ROOT / 'launch').glob('*.py'))
        for line, name in imports_of(path)
        if name not in allowed and name.split('.')[0] not in ('launch', 'launch_ros')
    ]
    assert not wrong, '\n'.join(wrong)


# what launch files, `ki up` and the docs read without ROS 2 and without a simulator
SETTINGS_MODULES = [
    'ki_policy_node.policy.settings',
    'ki_policy_node.executor.settings',
    'ki_policy_node.recorder.settings',
    'ki_policy_node.synthetic_settings',
    'ki_sim.node.settings',
]


def test_the_settings_of_the_nodes_are_read_without_ros_and_without_a_simulator() -> None:
    heavy = '{"rclpy", "ki_msgs", "torch", "mujoco", "cv2"}'
    code = f'import sys, {", ".join(SETTINGS_MODULES)}; print(sorted({heavy} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'


def test_commands_import_their_rooms_lazily() -> None:
    """`ki --help` must answer at once: no file of `ki` imports a room or a heavy library at its top level."""
    heavy = {'torch', 'mujoco', 'onnxruntime', 'transformers', 'rclpy', 'cv2'} | (
        ROOMS - {'ki', 'ki_common', 'ki_robot'}
    )
    wrong = []
    for path in sorted((ROOT / 'ki').rglob('*.py')):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            wrong += [f'{path.relative_to(ROOT)}: {name}' for name in names if name.split('.')[0] in heavy]
    assert not wrong, '\n'.join(wrong)


@pytest.mark.parametrize('room', sorted(MAY_IMPORT))
def test_no_modules_import_each_other_in_a_circle(room: str) -> None:
    """Wherever in the file the import stands, and for types alone, too: what belongs together is one module."""
    files = {'.'.join(path.relative_to(ROOT).with_suffix('').parts): path for path in (ROOT / room).rglob('*.py')}
    order = graphlib.TopologicalSorter({name: _modules_of(path) & set(files) - {name} for name, path in files.items()})
    try:
        order.prepare()
    except graphlib.CycleError as error:
        pytest.fail(' imports '.join(error.args[1]))


def _modules_of(path: Path) -> set[str]:
    """Names that a file imports, as modules: `from a import b` may be the module a.b."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f'{node.module}.{alias.name}' for alias in node.names}
    return found


def test_no_two_types_of_the_project_share_a_name() -> None:
    """Of a module's top level, or inside its classes unless they are private; and no alias is called like a class."""
    classes: dict[str, list[str]] = {}
    aliases: dict[str, list[str]] = {}
    for room in sorted(MAY_IMPORT):
        for path in sorted((ROOT / room).rglob('*.py')):
            body = ast.parse(path.read_text(encoding='utf-8')).body
            for name, line in _classes(body):
                classes.setdefault(name, []).append(f'{path.relative_to(ROOT)}:{line}')
            for node in body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    aliases.setdefault(node.targets[0].id, []).append(f'{path.relative_to(ROOT)}:{node.lineno}')
    shared = {name: [*places, *aliases.get(name, [])] for name, places in classes.items()}
    wrong = [f'{name}: {", ".join(places)}' for name, places in shared.items() if len(places) > 1]
    assert not wrong, '\n'.join(wrong)


def _classes(body: list[ast.stmt], inside: bool = False) -> Iterator[tuple[str, int]]:
    for node in body:
        if isinstance(node, ast.ClassDef):
            if not (inside and node.name.startswith('_')):
                yield node.name, node.lineno
            yield from _classes(node.body, inside=True)


@pytest.mark.ros
@pytest.mark.parametrize('module', [m for m in LIGHT_MODULES if (ROOT / (m.replace('.', '/') + '.py')).exists()])
def test_processes_that_guard_the_robot_never_load_torch(module: str) -> None:
    code = f'import sys, {module}; print(sorted({{"torch", "transformers", "onnxruntime"}} & set(sys.modules)))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == '[]'
