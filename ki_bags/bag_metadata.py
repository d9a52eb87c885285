"""Adds what is known of a finished recording to its metadata: the messages stay as they are."""

from __future__ import annotations

from pathlib import Path

import yaml

from ki_bags.errors import BagError
from ki_common.files import write_text

METADATA = 'metadata.yaml'


def add_metadata(bag: str | Path, custom: dict[str, str]) -> None:
    """Merges entries into the custom data of a rosbag2 folder, whole or not at all.

    Raises:
        BagError: No metadata there, or none that can be read or written.
    """
    path = Path(bag) / METADATA
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
        info = content['rosbag2_bagfile_information']
        info['custom_data'] = {**(info.get('custom_data') or {}), **custom}
        write_text(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    except (OSError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        raise BagError(f'{path} cannot be amended ({error}); it must be the metadata of a recording.') from error
