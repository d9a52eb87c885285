"""`python -m ki_vla.model.summary full`: the module tree, its parameters, and which loss moves which part.

The model is built on the meta device, so the full size needs no memory. Which loss reaches which part is measured on a
small model of the same structure: each loss is differentiated alone, and parts with a gradient are listed.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Iterator

import torch
from torch import nn

from ki_vla.errors import VlaError
from ki_vla.model.config import PARTS, PRESETS, ModelConfig, preset
from ki_vla.model.kivla import KiVla, skeleton
from ki_vla.objective.batch import Batch
from ki_vla.objective.recipes import RECIPES, Recipe, recipe
from ki_vla.objective.trainable import prepare


def part_of(name: str) -> str:
    """The part that a parameter belongs to: the first word of its name."""
    return name.split('.')[0]


def parameters_by_part(model: KiVla) -> dict[str, int]:
    """Number of parameters of every part that the model has."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        counts[part_of(name)] = counts.get(part_of(name), 0) + parameter.numel()
    return {part: counts[part] for part in PARTS if part in counts}


def random_batch(config: ModelConfig, size: int = 4, prompt: int = 12, targets: int = 10, seed: int = 0) -> Batch:
    """A batch of noise with everything in it: half action samples, half language samples, a missing camera, padding."""
    g = torch.Generator().manual_seed(seed)
    V, pixels, H, A = config.views, config.vision.image_size, config.horizon, config.action_dim
    image_mask = torch.ones(size, V, dtype=torch.bool)
    image_mask[-1, -1] = V == 1
    prompt_mask = torch.ones(size, prompt, dtype=torch.bool)
    prompt_mask[0, -2:] = False
    target_mask = torch.ones(size, targets, dtype=torch.bool)
    target_mask[-1, -3:] = False
    action_mask = torch.zeros(size, H, A, dtype=torch.bool)
    action_mask[: (size + 1) // 2] = True
    return Batch(
        images_BVCHW=torch.rand(size, V, 3, pixels, pixels, generator=g) * 2 - 1,
        image_mask_BV=image_mask,
        prompt_BL=torch.randint(0, config.vocab_size, (size, prompt), generator=g),
        prompt_mask_BL=prompt_mask,
        state_BS=torch.randn(size, config.state_dim, generator=g),
        target_BT=torch.randint(0, config.vocab_size, (size, targets), generator=g),
        target_mask_BT=target_mask,
        loss_mask_BT=target_mask.clone(),
        actions_BHA=torch.randn(size, H, A, generator=g),
        action_mask_BHA=action_mask,
    )


def gradient_flow(chosen: Recipe) -> dict[str, dict[str, bool]]:
    """For each loss of a recipe, by part: does any gradient arrive? Measured on a tiny model with random weights."""
    config = chosen.configure(preset('tiny'))
    torch_state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        model = KiVla(config)
        for parameter in model.parameters():
            # Adaptive norms start closed and would hide every path through the expert: open them.
            nn.init.normal_(parameter, std=0.2)
    finally:
        torch.random.set_rng_state(torch_state)
    prepare(model, chosen)
    found: dict[str, dict[str, bool]] = {}
    for loss in ('text', 'fast', 'flow'):
        model.zero_grad(set_to_none=True)
        value = _one_loss(model, chosen, loss)
        if not value.requires_grad:
            continue
        value.backward()
        moved = {part_of(n) for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
        found[loss] = {part: part in moved for part in parameters_by_part(model)}
    return found


def _one_loss(model: KiVla, chosen: Recipe, loss: str) -> torch.Tensor:
    """One of the three losses alone, with its graph: the batch is cut to the samples that have it."""
    batch = random_batch(model.config)
    keep = batch.has_actions_B if loss in ('fast', 'flow') else ~batch.has_actions_B
    batch = batch.part(keep)
    teacher = copy.deepcopy(model).requires_grad_(False) if chosen.consistency else None
    losses = model(batch, chosen.at(0.0), generator=torch.Generator().manual_seed(0), teacher=teacher)
    found: torch.Tensor = losses.flow if loss == 'flow' else losses.tokens
    return found


def _tree(module: nn.Module, name: str, depth: int = 0) -> Iterator[tuple[str, str, int]]:
    """Rows (indented name, shapes, parameters); a stack of equal layers is shown once."""
    own = {n: tuple(p.shape) for n, p in module.named_parameters(recurse=False)}
    shapes = '  '.join(f'{n} {list(s)}' for n, s in own.items())
    yield '  ' * depth + name, shapes, sum(p.numel() for p in module.parameters())
    for child_name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            total = sum(p.numel() for p in child.parameters())
            yield '  ' * (depth + 1) + f'{child_name}  x {len(child)}', '', total
            yield from _tree(child[0], '0', depth + 2)
        else:
            yield from _tree(child, child_name, depth + 1)


def _print(name: str, chosen: Recipe) -> None:
    from rich.console import Console
    from rich.table import Table

    config = chosen.configure(preset(name))
    model = skeleton(config)
    total = sum(p.numel() for p in model.parameters())
    console = Console(width=None if sys.stdout.isatty() else 150)

    tree = Table('module', 'weights', 'parameters', title=f'{name}, recipe {chosen.name}: {total:,} parameters')
    tree.columns[2].justify = 'right'
    for row in _tree(model, 'KiVla'):
        tree.add_row(row[0], row[1], f'{row[2]:,}')
    console.print(tree)

    flows = gradient_flow(chosen)
    table = Table('part', 'parameters', 'share', title='Which loss moves which part (measured)')
    labels = {'text': 'L_VLM', 'fast': 'L_FAST', 'flow': 'L1' if chosen.loss == 'l1' else 'L_FLOW'}
    for loss in labels:
        table.add_column(labels[loss], justify='center')
    for part, count in parameters_by_part(model).items():
        cells = [('moves' if flows[loss][part] else '0') if loss in flows else '-' for loss in labels]
        table.add_row(part, f'{count:,}', f'{count / total:.1%}', *cells)
    console.print(table)
    console.print(f'{chosen.name}: {chosen.about}')


def main(arguments: list[str] | None = None) -> int:
    """Print the summary of a preset under a recipe."""
    parser = argparse.ArgumentParser(
        prog='python -m ki_vla.model.summary', description='The model, its size, its gradients.'
    )
    parser.add_argument('preset', nargs='?', default='full', help=', '.join(PRESETS))
    parser.add_argument('--recipe', default='ours', help=', '.join(RECIPES))
    given = parser.parse_args(arguments)
    try:
        _print(given.preset, recipe(given.recipe))
    except VlaError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
