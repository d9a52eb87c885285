"""Recordings that are already in a folder: do the ones to be made have the same images and robot?"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ki_sim.errors import SimError
from ki_sim.record.job import RecordingJob
from ki_sim.record.record import jpeg, load


def check(work: Sequence[RecordingJob]) -> None:
    """Looks at the first job that is done already, whose pictures stand for those of its folder.

    Raises:
        SimError: its pictures have another size or JPEG quality, or it is no recording.
    """
    job = next((job for job in work if Path(job.path).exists()), None)
    if job is None:
        return
    with Image.open(io.BytesIO(_first_picture(job))) as picture:
        size, tables = picture.size, picture.quantization
    if size != (job.image_size, job.image_size):
        raise SimError(
            f'{job.path} was recorded with images of {size[1]}x{size[0]}, and {job.image_size}x{job.image_size} is '
            f'asked for: give --image-size {size[0]}, or another folder with --out'
        )
    if tables != _tables(job.quality):
        known = [str(quality) for quality in range(1, 101) if _tables(quality) == tables]
        fix = f'give --quality {known[0]}, or another folder with --out' if known else 'give another folder with --out'
        raise SimError(
            f'{job.path} was recorded with JPEGs of quality {known[0] if known else "unknown"}, and {job.quality} is '
            f'asked for: {fix}'
        )


def _first_picture(job: RecordingJob) -> bytes:
    """The first JPEG of a recording."""
    if job.format == 'npz':
        found = load(job.path)
        return bytes(found['jpeg'][: found['offset'][0, 1]])
    from ki_bags.reader import open_bag
    from ki_robot.contract.contract import load_contract
    from ki_sim.record.sim_bags import ROBOT

    bag, topic = open_bag(job.path), f'/{load_contract(ROBOT).cameras[0].topic}'
    for message in bag.messages([topic]):
        return bytes(bag.decode(message).data)
    raise SimError(f'{job.path} holds no picture on {topic}: remove it, and it is recorded again')


def _tables(quality: int) -> dict[int, list[int]]:
    """What a JPEG of a quality is quantised with."""
    with Image.open(io.BytesIO(jpeg(np.zeros((8, 8, 3), np.uint8), quality))) as picture:
        tables: dict[int, list[int]] = picture.quantization
    return tables
