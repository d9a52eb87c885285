"""What a policy was shown and said, as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ki_vla.policy.golden import Golden, GoldenAnswer
    from ki_vla.policy.processor import Processor


def show_answer(processor: Processor, golden: Golden, said: GoldenAnswer) -> None:
    """Prints views, prompt, and one line for each state and action column."""
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True, highlight=False, markup=False)
    contract = processor.contract
    for place, camera in enumerate(contract.cameras):
        height, width = golden.images[camera.name].shape[:2]
        console.print(f'view {place + 1}: {camera.name} ({camera.kind}), {width} x {height}')
    console.print(f'prompt ({len(said.prompt_L)} tokens): {said.prompt!r}')
    state = Table('state column', 'unit', 'value', 'scaled', box=None)
    for column, value, scaled in zip(contract.state, golden.state, said.state_N, strict=True):
        state.add_row(column.name, column.unit, f'{value:.4g}', f'{scaled:.3f}')
    console.print(state)
    heads = ['action column', 'unit', 'says', 'first step', 'last step', 'least', 'most']
    actions = Table(*heads, *(['off by'] if said.error_HN is not None else []), box=None)
    for place, action in enumerate(contract.actions):
        steps = said.actions_HN[:, place]
        off = [] if said.error_HN is None else [f'{said.error_HN[:, place].max():.3g}']
        numbers = (f'{each:.4g}' for each in (steps[0], steps[-1], steps.min(), steps.max()))
        actions.add_row(action.name, action.unit, action.representation, *numbers, *off)
    console.print(actions)
