"""The metadata.yaml of a recording: read without trusting it, and amended; the messages stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ki_bags.errors import BagError
from ki_common.files import write_text

METADATA = 'metadata.yaml'
INFORMATION = 'rosbag2_bagfile_information'
MAX_BYTES = 16 << 20
MAX_NODES = 1_000_000  # aliases expanded, so that a few lines cannot become gigabytes
MAX_DEPTH = 64
_LOADER: Any = getattr(yaml, 'CSafeLoader', yaml.SafeLoader)


def read_metadata(path: Path) -> dict[str, Any]:
    """What a metadata.yaml says of its recording.

    Raises:
        BagError: It does not read, is no metadata, or would expand to more than a recording can have to say.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise BagError(f'{path.stat().st_size} bytes are too many')
        text = path.read_text(encoding='utf-8')
        _check_size(text)
        content = yaml.load(text, Loader=_LOADER)
        information = content.get(INFORMATION) if isinstance(content, dict) else None
        if not isinstance(information, dict):
            raise BagError(f'it has no mapping {INFORMATION}')
        return information
    except (OSError, ValueError, TypeError, RecursionError, BagError, yaml.YAMLError) as error:
        raise BagError(f'{METADATA} cannot be used: {" ".join(str(error).split())[:200]}') from error


def _check_size(text: str) -> None:
    """Follows the events of a YAML text, which cost no more than its length, and counts what it would become.

    Raises:
        BagError: Too much, too deep, or a merge key, which a recorder does not write and which multiplies.
    """
    sizes: dict[str, int] = {}
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]

    def add(count: int) -> None:
        name, before = open_nodes[-1]
        open_nodes[-1] = (name, before + count)
        if before + count > MAX_NODES:
            raise BagError(f'its aliases make more than {MAX_NODES} values of it')

    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.AliasEvent):
            add(sizes.get(str(event.anchor), 1))
        elif isinstance(event, yaml.ScalarEvent):
            if event.value == '<<' and event.style not in ('"', "'"):
                raise BagError('it has a merge key (<<)')
            if event.anchor:
                sizes[event.anchor] = 1
            add(1)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, 1))
            if len(open_nodes) > MAX_DEPTH:
                raise BagError(f'it is nested more than {MAX_DEPTH} deep')
        elif isinstance(event, yaml.CollectionEndEvent):
            name, size = open_nodes.pop()
            if name:
                sizes[name] = size
            add(size)


def add_metadata(bag: str | Path, custom: dict[str, str]) -> None:
    """Merges entries into the custom data of a rosbag2 folder, whole or not at all.

    Raises:
        BagError: No metadata there, or none that can be read or written.
    """
    path = Path(bag) / METADATA
    try:
        information = read_metadata(path)
        information['custom_data'] = {**(information.get('custom_data') or {}), **custom}
        write_text(path, yaml.safe_dump({INFORMATION: information}, sort_keys=False, allow_unicode=True))
    except (OSError, TypeError, AttributeError, BagError, yaml.YAMLError) as error:
        raise BagError(f'{path} cannot be amended ({error}); it must be the metadata of a recording.') from error
