"""Where a policy's pointer says that things are, on moments of scenes that nobody has seen.

    python benchmarks/evidence/pointing.py bundles/demo [--scenes 20] [--out FILE.json]

For every task, and by what is being done with the thing (free, held, done): how far the place that the expert hears is
from the true one, in shares of the view, and how often another thing is nearer to it than the one that is meant. What a
policy believes of a thing in its hand decides whether it carries it on.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ki.simulation.sim_evaluation import camera_size, trained_tasks
from ki_common.files import write_text
from ki_sim.moments.columns import MomentColumns
from ki_sim.moments.maker import MomentMaker, SimMoment
from ki_sim.moments.shards import FORMAT
from ki_sim.tasks.tasks import Bias
from ki_vla.model.kivla import KiVla
from ki_vla.policy.bundle import load_bundle
from ki_vla.policy.processor import Processor

FIRST_SEED = 900_000_000  # no data begin so high
DONE_WITH = ('free', 'held', 'done')
PLACES = ('acted on', 'put on or beside')
SAME = 0.05  # of the view: a shown thing this near to the true place is the one that is meant


def pointed(model: KiVla, processor: Processor, moment: SimMoment) -> np.ndarray:
    """Places in the first view (2, 2), 0..1 from the left and from the top, as the expert hears them."""
    seen = processor.inputs(moment.images, moment.state, moment.instruction).sample()
    row = {name: torch.from_numpy(np.asarray(value))[None] for name, value in seen.items()}
    prompt = row['prompt_L'], row['prompt_mask_L'], row['state_S'].float()
    said_BC = model.prefill(row['images_VCHW'], row['image_mask_V'], *prompt).said_BC
    if model.pointer is None or said_BC is None:
        raise SystemExit('The model has no pointer; name a bundle that was trained with model.pointer.')
    return model.pointer.heard(said_BC)[0].detach().numpy()


def judged(processor: Processor, moment: SimMoment, said_M2: np.ndarray) -> list[tuple[str, float, bool | None]]:
    """Of each place that there is: which, how far off, and whether another thing is nearer; None if none shows."""
    camera = processor.contract.cameras[0]
    height, width = moment.images[camera.name].shape[:2]

    def view(at: tuple[float, float]) -> np.ndarray:
        return np.array(processor.in_view(camera, height, width, *at))

    shown = [view((each.x, each.y)) for each in moment.things]
    found = []
    for name, point, said_2 in zip(PLACES, moment.points, said_M2, strict=True):
        if point is None:
            continue
        true_2 = view(point)
        meant = [float(np.linalg.norm(each - true_2)) < SAME for each in shown]
        others = [float(np.linalg.norm(each - said_2)) for each, is_it in zip(shown, meant, strict=True) if not is_it]
        off = float(np.linalg.norm(said_2 - true_2))
        found.append((name, off, min(others) < off if others else None))
    return found


def main(arguments: list[str] | None = None) -> int:
    """Makes moments, and tells."""
    parser = argparse.ArgumentParser(description="A policy's pointer on moments that nobody has seen.")
    parser.add_argument('bundle', type=Path)
    parser.add_argument('--scenes', type=int, default=20)
    parser.add_argument('--out', type=Path)
    given = parser.parse_args(arguments)
    bundle = load_bundle(given.bundle)
    processor, model = bundle.processor, bundle.model().eval()
    contract = processor.contract
    columns = MomentColumns(contract.state_names, contract.action_names)
    maker = MomentMaker(columns, 1, contract.camera_names, camera_size(given.bundle), Bias())
    off: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    wrong: dict[tuple[str, str, str], list[bool]] = defaultdict(list)
    for task in trained_tasks(given.bundle):
        for seed in range(given.scenes):
            for moment in maker.moments(task, FIRST_SEED + seed):
                for name, error, mistaken in judged(processor, moment, pointed(model, processor, moment)):
                    key = task, name, DONE_WITH[moment.held]
                    off[key].append(error)
                    if mistaken is not None:
                        wrong[key].append(mistaken)
    told: dict[str, Any] = {
        'command': f'python benchmarks/evidence/pointing.py {given.bundle} --scenes {given.scenes}',
        'policy': bundle.policy_id,
        'moments of format': FORMAT,
        'places': {},
    }
    for key, errors in sorted(off.items()):
        told['places'][', '.join(key)] = {
            'moments': len(errors),
            'off, p50 and p90, of the view': [round(float(np.percentile(errors, p)), 3) for p in (50, 90)],
            'another thing is nearer': [sum(wrong[key]), len(wrong[key])],
        }
    text = json.dumps(told, indent=1)
    print(text)
    if given.out is not None:
        write_text(given.out, text + '\n')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
