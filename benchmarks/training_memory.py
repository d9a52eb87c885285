"""What a training step needs of a GPU's memory, by part, counted without one.

    python benchmarks/training_memory.py            writes benchmarks/results/training_memory.json

One step runs on tensors without memory, forward, backward and optimiser, by the trainer's own functions; each storage
is counted from its making to its end. What a GPU adds is not counted: about 1 GiB for the CUDA context and workspaces
of libraries, and what its allocator loses between blocks, a few per cent. Attention is that of a CPU, which under
autocast holds float32 copies of a block's queries, keys and values: an upper bound.
"""

from __future__ import annotations

import argparse
import json
import sys
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before the file training.py, which hides that room

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ki_vla.model.config import ModelConfig, preset
from ki_vla.model.kivla import skeleton
from ki_vla.model.summary import random_batch
from ki_vla.objective.recipes import OURS
from ki_vla.objective.trainable import prepare
from training.train.config import Stage
from training.train.lora import add_lora, freeze_base
from training.train.schedule import make_optimiser

RESULTS = Path(__file__).resolve().parent / 'results' / 'training_memory.json'
GIB = 2**30
H100_GIB, DESKTOP_GIB = 78.0, 22.3  # what an 80 GB and a 24 GB card leave to programs


class Live(TorchDispatchMode):
    """Bytes that are held, now and at most."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, Tensor):
                self._hold(value.untyped_storage())
        return found

    def _hold(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@contextmanager
def autocast() -> Iterator[None]:
    """Products in bfloat16, as the trainer has them."""
    with torch.autocast('cpu', torch.bfloat16):
        yield


def account(config: ModelConfig, batch: int, lora: int = 0, targets: int = 80) -> dict[str, float]:
    """GiB of one step of the recipe `ours` with block checkpointing, all views and a full prompt.

    Args:
        config: of the model.
        batch: samples.
        lora: rank of adapters; 0 trains everything.
        targets: tokens that are predicted for a sample.
    """
    model = skeleton(config)
    if lora:
        add_lora(model, lora, small=True)
    example = random_batch(config, batch, prompt=config.max_prompt, targets=min(targets, config.max_targets))
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        model = model.to_empty(device='cpu')
        prepare(model, OURS)
        if lora:
            freeze_base(model)
        model.checkpointing = True
        weights = live.now
        given = {
            f.name: torch.empty(value.shape, dtype=value.dtype)
            for f in fields(example)
            if (value := getattr(example, f.name)) is not None
        }
        noise, tau = torch.empty(batch, 1, config.horizon, config.action_dim), torch.empty(batch, 1)
        with autocast():
            total = model(replace(example, **given), OURS, 1, noise, tau).total
        total.backward()
        most = live.most
        del total
        gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
        before = live.now
        optimiser = make_optimiser(model, Stage())
        optimiser.step()
        moments = live.now - before
    found = {'weights': weights, 'gradients': gradients, 'moments': moments, 'activations': most - weights - gradients}
    # Gradients grow while activations are given up, so the most of both is less than their sum.
    step = {**found, 'step': most + moments}
    return {name: round(value / GIB, 2) for name, value in step.items()}


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description='Memory of a training step, counted without a GPU.')
    parser.add_argument('--out', type=Path, default=RESULTS)
    given = parser.parse_args()
    full = preset('full')
    result: dict[str, Any] = {'command': 'python benchmarks/training_memory.py', 'gib': {}}
    for name, batch, lora in (
        ('everything, batch 8', 8, 0), ('everything, batch 16', 16, 0), ('LoRA 16, batch 8', 8, 16),
    ):  # fmt: skip
        result['gib'][name] = account(full, batch, lora)
        print(name, result['gib'][name], flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
