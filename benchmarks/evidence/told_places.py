"""Is it where a policy takes things to be, or what its expert makes of that? In closed loop, told the true places.

    python benchmarks/evidence/told_places.py bundles/demo [--task next_to --task stack] [--seeds 50] [--out FILE.json]

A policy with `model.pointer` says where in its view the things are that the words ask for, and its expert acts on that.
Here the simulator says it in its place: of no thing, of the one that is acted on, of the one that this is put on or
beside, or of both. What succeeds then and did not before failed by the pointer; what still fails, by the expert.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ki.simulation.sim_evaluation import camera_size
from ki.simulation.sim_policy import ClosedLoopPolicy, open_sim_policy
from ki.simulation.simulated_data import load_triton_before_mesa
from ki_common.files import write_text
from ki_sim.evaluate.closed_loop import SETTLED_STEPS, SceneOutcome, policy_row
from ki_sim.moments.maker import place_in
from ki_sim.world.world import STEP_NS, World
from ki_vla.model.config import POINTS
from ki_vla.model.pointer import POINT_SCALE, PlacePointer
from ki_vla.policy.bundle import load_bundle

FIRST_SEED = 1_000_000  # as `ki eval sim`
TOLD = {'nothing': (), 'acted on': (0,), 'put on or beside': (1,), 'both': (0, 1)}


def told(said_BC: Tensor, cells: int, places: dict[int, tuple[float, float]]) -> Tensor:
    """What the expert hears, as the surest of pointers would say it: of these places in the view, 0..1 each."""
    said_BC = said_BC.clone()
    for number, place in places.items():
        for axis, at in enumerate(place):
            first = (axis * POINTS + number) * cells
            said_BC[:, first : first + cells] = 0.0
            said_BC[:, first + min(max(int(at * cells), 0), cells - 1)] = 1.0
            said_BC[:, 2 * POINTS * cells + 2 * number + axis] = (at - 0.5) / POINT_SCALE
    return said_BC


class TruePlaces:
    """Puts true places where the policy's pointer says its own; a thing outside the picture stays with the pointer."""

    def __init__(self, bundle: Path, numbers: tuple[int, ...]) -> None:
        self.world: World | None = None
        self._numbers, self._size = numbers, camera_size(bundle)
        self._processor = load_bundle(bundle, verify=False).processor

    def __call__(self, module: nn.Module, _: Any, said_BC: Any) -> Tensor | None:
        """A hook of every module: what a pointer said, changed; None leaves it."""
        if self.world is None or not isinstance(module, PlacePointer):
            return None
        goal, camera = self.world.episode.goal, self._processor.contract.cameras[0]
        found = {}
        for number in self._numbers:
            index = (goal.objects[0], goal.other)[number]
            at = None if index < 0 else place_in(self.world.model, self.world.data, camera.name, index)
            if at is not None:
                found[number] = self._processor.in_view(camera, self._size, self._size, *at)
        return told(said_BC, module.cells, found)


def play(policy: ClosedLoopPolicy, places: TruePlaces, task: str, seed: int, size: int) -> bool:
    """Whether an episode succeeds."""
    policy.reset()
    with World(task, seed, image_size=size, cameras=policy.cameras) as world:
        places.world, held = world, 0
        outcome = SceneOutcome(task, seed, seed, world.episode.instruction)
        for _ in range(round(world.episode.limit_s * 1e9 / STEP_NS)):
            world.step(policy_row(policy, world, outcome))
            held = held + 1 if world.success() else 0
            if held >= SETTLED_STEPS:
                return True
    return False


def main(arguments: list[str] | None = None) -> int:
    """Plays, and tells."""
    parser = argparse.ArgumentParser(description='A policy in closed loop, told the true places of things.')
    parser.add_argument('bundle', type=Path)
    parser.add_argument('--task', action='append')
    parser.add_argument('--seeds', type=int, default=50)
    parser.add_argument('--execute-steps', type=int, default=4)
    parser.add_argument('--out', type=Path)
    given = parser.parse_args(arguments)
    tasks, size = given.task or ['next_to', 'stack'], camera_size(given.bundle)
    load_triton_before_mesa()
    torch.set_num_threads(1)
    policy = open_sim_policy(given.bundle, 'torch', 0, 'latest', given.execute_steps, 0)
    failed: dict[str, dict[str, list[int]]] = {}
    try:
        for name, numbers in TOLD.items():
            places = TruePlaces(given.bundle, numbers)
            hook = nn.modules.module.register_module_forward_hook(places)  # type: ignore[arg-type]  # it may change what it sees
            try:
                failed[f'told of {name}'] = {
                    task: [
                        seed for seed in range(given.seeds) if not play(policy, places, task, FIRST_SEED + seed, size)
                    ]
                    for task in tasks
                }
            finally:
                hook.remove()
            print(name, {task: given.seeds - len(each) for task, each in failed[f'told of {name}'].items()}, flush=True)
    finally:
        policy.close()
    told_all = {
        'command': f'python benchmarks/evidence/told_places.py {given.bundle} --seeds {given.seeds} '
        f'--execute-steps {given.execute_steps}' + ''.join(f' --task {task}' for task in given.task or ()),
        'policy': policy.policy_id,
        'scenes of each task': given.seeds,
        'failed scenes': failed,
    }
    text = json.dumps(told_all, indent=1)
    print(text)
    if given.out is not None:
        write_text(given.out, text + '\n')
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
