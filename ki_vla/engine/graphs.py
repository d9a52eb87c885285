"""Functions over fixed buffers, captured once as CUDA graphs and replayed: one launch in place of thousands.

Capturing fixes shapes, addresses and the order of operations. Inputs are therefore copied into the buffers that a graph
reads; outputs stay in the buffers that it writes until its next replay. A graph that reads another one's outputs reads
them in place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from ki_vla.errors import VlaError

WARM_UPS = 3
Function = Callable[..., Any]


class Capture(Protocol):
    """Records `function(*buffers)`; returns its outputs (which every replay writes again) and the replay."""

    def __call__(self, function: Function, buffers: Sequence[Tensor]) -> tuple[Any, Callable[[], None]]:
        """See the class."""
        ...


def capture_cuda(function: Function, buffers: Sequence[Tensor]) -> tuple[Any, Callable[[], None]]:
    """As a CUDA graph, after runs on a side stream that let libraries allocate and choose (torch's own recipe).

    Raises:
        VlaError: there is no CUDA device, or a buffer is not on it: a graph of host memory replays nothing.
    """
    if not torch.cuda.is_available():
        raise VlaError("CUDA graphs need a CUDA device and there is none; take mode 'packed' or 'compiled'.")
    elsewhere = sorted({str(each.device) for each in buffers if not each.is_cuda})
    if elsewhere:
        raise VlaError(
            f'CUDA graphs need buffers on a CUDA device, and some are on {", ".join(elsewhere)}; take device cuda, or '
            "mode 'packed' or 'compiled'."
        )
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UPS):
            function(*buffers)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other threads of the process may use CUDA while this one captures.
    with torch.cuda.graph(graph, capture_error_mode='thread_local'):
        outputs = function(*buffers)
    return outputs, graph.replay


def capture_eagerly(function: Function, buffers: Sequence[Tensor]) -> tuple[Any, Callable[[], None]]:
    """The same contract without CUDA: fixed buffers, every replay computes and writes into them."""
    outputs = _clones(function(*buffers))

    def replay() -> None:
        for kept, new in zip(_tensors(outputs), _tensors(function(*buffers)), strict=True):
            kept.copy_(new)

    return outputs, replay


class CapturedFunction:
    """A function over fixed buffers.

    Args:
        function: tensors in, a tensor or a tuple of tensors (or None) out.
        examples: one tensor for each input; their values are used for warming up.
        shared: positions of inputs whose buffers are the given tensors themselves (outputs of another one); they are
            never copied.
        capture: how to record.
        device: where the buffers lie; the inputs of a call may lie elsewhere (pinned memory, say).
    """

    def __init__(
        self,
        function: Function,
        examples: Sequence[Tensor],
        shared: Sequence[int] = (),
        capture: Capture = capture_cuda,
        device: torch.device | str = 'cpu',
    ) -> None:
        self._copied = [index for index in range(len(examples)) if index not in set(shared)]
        self._buffers = [
            example if index in set(shared) else example.to(device, copy=True) for index, example in enumerate(examples)
        ]
        self.outputs, self._replay = capture(function, self._buffers)

    def __call__(self, *inputs: Tensor) -> Any:
        """Run on new values of the inputs that are not shared, in order; the outputs are overwritten every time."""
        for index, value in zip(self._copied, inputs, strict=True):
            self._buffers[index].copy_(value, non_blocking=True)
        self._replay()
        return self.outputs


def _tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [each for each in value if each is not None]


def _clones(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    copied = [None if each is None else each.clone() for each in value]
    return type(value)(*copied) if hasattr(value, '_fields') else tuple(copied)
