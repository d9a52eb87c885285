"""Where the files of a ROS package lie that are no Python: in this source tree, or in the package's share folder."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from ki_common.errors import KiError

# What `share/PACKAGE` of an installation holds, in this source tree.
_TREE = Path(__file__).resolve().parent.parent
_SOURCES = {'ki_policy_node': _TREE, 'ki_msgs': _TREE / 'ki_msgs'}


class ShareError(KiError):
    """A file that belongs to a package is not installed."""


def share_folders(package: str) -> list[Path]:
    """The folders that may hold a package's files, whether or not they exist.

    The source tree comes first, then the sourced workspaces in the order of AMENT_PREFIX_PATH, then the environment of
    this Python: a workspace that is sourced wins over what pip installed.
    """
    prefixes = [prefix for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if prefix]
    installed = (Path(prefix) / 'share' / package for prefix in [*prefixes, sys.prefix])
    ours = [_SOURCES[package]] if package in _SOURCES else []
    return list(dict.fromkeys([*ours, *installed]))


def share_file(package: str, name: str) -> Path:
    """The first file `name` (`config/dds/lan.xml`) among the share folders of a package.

    Raises:
        ShareError: It is in none of them.
    """
    folders = share_folders(package)
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    tried = ', '.join(map(str, folders))
    raise ShareError(f'{name} of {package} is in none of {tried}; build {package}, or source its workspace.')
