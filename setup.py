"""Package metadata, here and not in pyproject.toml, because ROS 2 Humble's setuptools (59) reads only this."""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'ki_policy_node'
ROOMS = ['ki', 'ki_robot', 'ki_vla', 'ki_policy_node', 'training', 'ki_sim']


def config_files() -> list[tuple[str, list[str]]]:
    """Every file below config/, installed under share/ki_policy_node/config with its folder kept."""
    folders: dict[str, list[str]] = {}
    for path in sorted(Path('config').rglob('*')):
        if path.is_file():
            folders.setdefault(f'share/{PACKAGE}/{path.parent}', []).append(str(path))
    return sorted(folders.items())


setup(
    name=PACKAGE,
    version='0.1.0',
    description='ROS 2 robot control stack around the knowledge-insulated vision-language-action model.',
    long_description=Path('README.md').read_text(encoding='utf-8') if Path('README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    maintainer='Knowledge-insulated VLA maintainers',
    maintainer_email='maintainers@example.com',
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=[pattern for room in ROOMS for pattern in (room, f'{room}.*')]),
    include_package_data=True,
    package_data={room: ['**/*.xml', '**/*.json', '**/*.yaml', 'py.typed'] for room in ROOMS},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        (f'share/{PACKAGE}/launch', sorted(glob('launch/*.launch.py'))),
        *config_files(),
    ],
    zip_safe=False,
    entry_points={'console_scripts': ['ki = ki.main:main']},
)
