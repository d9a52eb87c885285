"""A JPEG decoded reduced and decoded in full: what it costs, and how far apart the model's views of it are.

    python benchmarks/decode.py [--count 60]

Pictures of 640x480 as JPEGs of quality 90: made ones with a camera's noise, and, where KI_DATA names the folder of
recordings, frames of the video of a Unitree G1. Times are CPU time of one thread, full and reduced in turns.
Differences are in grey levels (of 255) over all pixels and colours, whole pictures in a square as `Processor.view`
makes it. Writes benchmarks/results/decode.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault('OMP_NUM_THREADS', '1')

import cv2
import numpy as np

from ki_common.memory import keep_freed_memory
from ki_policy_node.synthetic_robot import picture
from ki_robot.messages.images import Image, decode_compressed
from ki_robot.transforms import needed_side, resize_with_pad

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / 'benchmarks' / 'results' / 'decode.json'
NOISE, QUALITY, SIZES = 10.0, 90, (224, 96)


def main() -> None:
    """Prints the tables and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--count', type=int, default=60, help='pictures of each kind')
    parser.add_argument('--out', type=Path, default=RESULT)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    keep_freed_memory()
    result: dict[str, Any] = {'command': f'python benchmarks/decode.py --count {given.count}', 'kinds': {}}
    for name, jpegs in kinds(given.count):
        if jpegs:
            result['kinds'][name] = {'pictures': len(jpegs), 'kB': round(float(np.mean([len(j) for j in jpegs])) / 1e3)}
            for size in SIZES:
                result['kinds'][name][f'view {size}'] = compare(jpegs, size)
            print(name, json.dumps(result['kinds'][name], indent=1))
    given.out.write_text(json.dumps(result, indent=1) + '\n')


def kinds(count: int) -> Iterator[tuple[str, list[Image]]]:
    """Pictures of each kind as JPEG bytes."""
    yield f'made, noise of {NOISE:g}', [_jpeg(picture((480, 640), k, NOISE)) for k in range(count)]
    data = Path(os.environ.get('KI_DATA', ''))
    videos = sorted(data.glob('unitree_g1_lerobot_v21/videos/**/*.mp4')) if data.name else []
    yield 'video of a G1', [_jpeg(frame) for video in videos[:1] for frame in _frames(video, count)]


def compare(jpegs: list[Image], size: int) -> dict[str, Any]:
    """Views of pictures decoded in full against those decoded reduced."""
    side, spent, apart = needed_side(None, size), ([], []), []
    for data in jpegs:
        message = SimpleNamespace(data=data, format='jpeg')
        views = []
        for index, wanted in enumerate((None, side)):
            begin = time.thread_time()
            views.append(resize_with_pad(decode_compressed(message, side=wanted), size))
            spent[index].append(time.thread_time() - begin)
        apart.append(np.abs(views[0].astype(np.int16) - views[1]).reshape(-1))
    levels = np.concatenate(apart)
    full, reduced = (round(float(np.median(each)) * 1e3, 2) for each in spent)
    return {
        'decoded to': list(decode_compressed(SimpleNamespace(data=jpegs[0], format='jpeg'), side=side).shape[1::-1]),
        'full [ms]': full,
        'reduced [ms]': reduced,
        'difference mean': round(float(levels.mean()), 2),
        'difference p99': int(np.percentile(levels, 99)),
        'difference max': int(levels.max()),
    }


def _jpeg(image: Image) -> Image:
    done, data = cv2.imencode('.jpg', cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    assert done
    return data.reshape(-1)


def _frames(video: Path, count: int) -> Iterator[Image]:
    import av

    with av.open(str(video)) as stream:
        total = stream.streams.video[0].frames or count
        every = max(1, total // count)
        for number, frame in enumerate(stream.decode(video=0)):
            if number % every == 0:
                yield frame.to_ndarray(format='rgb24')


if __name__ == '__main__':
    main()
