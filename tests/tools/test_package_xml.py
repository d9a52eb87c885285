"""package.xml names every ROS package that the code imports, names as an interface, launches or plays with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ('ki', 'ki_bags', 'ki_common', 'ki_policy_node', 'ki_robot', 'ki_sim', 'launch')
NAME = 'ki_policy_node'
ROS = re.compile(r'rclpy|cv_bridge|sros2|\w+_(?:msgs|srvs|interfaces|ros)|launch|(?:ament|rosbag2|ros2|rosidl|tf2)\w*')
INTERFACE = re.compile(r'\b([a-z]\w*)/(?:msg|srv|action)/[A-Z]\w')


def modules(tree: ast.AST) -> Iterator[str]:
    """The packages that a file imports, wherever it does."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition('.')[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition('.')[0]
        elif isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'import_module':
            yield from (str(each.value).partition('.')[0] for each in node.args if isinstance(each, ast.Constant))


def words(tree: ast.AST) -> Iterator[str]:
    """Packages that strings name, docstrings aside: interfaces, the nodes of launch files, commands of ros2."""
    told = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in told:
            yield from INTERFACE.findall(node.value)
        elif isinstance(node, ast.keyword) and node.arg == 'package' and isinstance(node.value, ast.Constant):
            yield str(node.value.value)
        elif isinstance(node, ast.List | ast.Tuple) and len(node.elts) > 1:
            first = [each.value for each in node.elts[:2] if isinstance(each, ast.Constant)]
            if len(first) == 2 and first[0] == 'ros2':
                yield f'ros2{first[1]}'


def used(folders: tuple[str, ...], strings: bool = True) -> dict[str, str]:
    """Every ROS package that is used in some folders, with a file that uses it."""
    found: dict[str, str] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob('*.py')):
            tree = ast.parse(path.read_text(encoding='utf-8'))
            imported = {name for name in modules(tree) if ROS.fullmatch(name)}
            for name in imported | (set(words(tree)) if strings else set()):
                found.setdefault(name, str(path.relative_to(ROOT)))
    return {name: where for name, where in found.items() if name != NAME}


def declared(tests: bool = False) -> list[str]:
    """What package.xml depends on, for its tests or for the rest."""
    tree = ElementTree.parse(ROOT / 'package.xml').getroot()
    return [str(each.text) for each in tree if each.tag.endswith('depend') and (each.tag == 'test_depend') == tests]


def test_every_ros_package_that_is_used_is_declared_and_the_other_way_round() -> None:
    here, needed = used(FOLDERS), declared()
    assert not {name: where for name, where in here.items() if name not in needed}
    # Read by `ros2 bag` and `ros2 launch` themselves, which the docs tell to call.
    others = {name for name in needed if not name.startswith('python3-')} - {'rosbag2_storage_mcap', 'ros2launch'}
    assert others - here.keys() == set()
    assert len(needed) == len(set(needed))


def test_what_tests_import_is_declared() -> None:
    known = {*declared(), *declared(tests=True)}
    assert not {name: where for name, where in used(('tests',), strings=False).items() if name not in known}


def test_what_uses_a_package_in_another_way_is_seen() -> None:
    code = "x = ['ros2', 'bag', 'play']\nNode(package='image_tools', executable='x')\nTYPE = 'tf2_msgs/msg/TFMessage'"
    assert set(words(ast.parse(f'"""Not this: my_msgs/msg/Thing."""\n{code}'))) == {
        'ros2bag',
        'image_tools',
        'tf2_msgs',
    }
    assert list(modules(ast.parse("importlib.import_module('cv_bridge')"))) == ['cv_bridge']
