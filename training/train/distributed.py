"""One run over many processes: torchrun starts them, this file shares out the work and, of large models, the weights.

Nothing here is an algorithm of our own. A small model is whole in every process, and its gradients are averaged once a
step. Of a large one weights, gradients and optimiser state are sharded by `fully_shard` (FSDP2); whole copies, for
checkpoints that any number of processes can read, are put together by `torch.distributed.checkpoint`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ki_vla.model.kivla import KiVla
from training.errors import TrainingError

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
# The first process indexes and saves alone while the others wait for it, for hours; torch would give up in minutes.
PATIENCE = timedelta(hours=12)
SMALL = 50_000_000  # parameters up to which the collectives of sharding cost more than the memory that it saves


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all: its rank, their number, its device."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device('cpu'))

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0


def usable_device(device: str) -> str:
    """`device`, cpu or cuda; for `auto`, which of them there is.

    Raises:
        TrainingError: there is no such device.
    """
    kind = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
    if kind not in ('cpu', 'cuda'):
        raise TrainingError(f'device: {device!r} is unknown; choose cpu, cuda or auto.')
    if kind == 'cuda' and not torch.cuda.is_available():
        raise TrainingError('device: cuda was asked for and torch sees no GPU; write cpu or auto.')
    return kind


def open_world(device: str = 'auto') -> ProcessGroup:
    """Joins the processes that torchrun started, or is alone.

    Raises:
        TrainingError: there is no such device.
    """
    kind = usable_device(device)
    size = int(os.environ.get('WORLD_SIZE', '1'))
    place = torch.device('cuda', int(os.environ.get('LOCAL_RANK', '0'))) if kind == 'cuda' else torch.device('cpu')
    if kind == 'cuda':
        torch.cuda.set_device(place)
    if size > 1 and not dist.is_initialized():
        dist.init_process_group('nccl' if kind == 'cuda' else 'gloo', timeout=PATIENCE)
    return ProcessGroup(int(os.environ.get('RANK', '0')), size, place)


def close_world(world: ProcessGroup) -> None:
    """Leaves the other processes."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def shard(model: KiVla, world: ProcessGroup, bf16: bool = False) -> None:
    """Moves the model to its device and, with several processes, shards a large one: every block, then the rest.

    With `bf16` blocks are gathered in bfloat16, half the traffic, and gradients are summed in float32; the inputs stay
    as they are, since flow times and noise need float32 and autocast rounds what a matrix product takes.
    """
    model.to(world.device)
    if world.size == 1:
        return
    if sum(parameter.numel() for parameter in model.parameters()) <= SMALL:
        for tensor in (*model.parameters(), *model.buffers()):
            dist.broadcast(tensor.detach(), src=0)
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(world.device.type, (world.size,))
    dtypes = {'param_dtype': torch.bfloat16, 'reduce_dtype': torch.float32} if bf16 else {}
    policy = MixedPrecisionPolicy(**dtypes, cast_forward_inputs=False)
    for stack in (model.vision, model.backbone, model.expert):
        for layer in getattr(stack, 'layers', ()):
            fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, reshard_after_forward=True, mp_policy=policy)
    register_fsdp_forward_method(model, 'prefill')  # for what is kept of a frozen backbone


def average_gradients(model: nn.Module, world: ProcessGroup) -> None:
    """Means over processes, where the model is whole in each; where it is sharded, the backward pass took them.

    The processes have gradients of the same weights, since they take the same paths (see `Batch.first_acting`).
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if world.size == 1 or not gradients or isinstance(gradients[0], dist.tensor.DTensor):
        return
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    flat /= world.size
    for gradient, mean in zip(gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def totals(world: ProcessGroup, values: Sequence[float]) -> list[float]:
    """Each number summed over all processes; waits for the device."""
    if world.size == 1:
        return [float(value) for value in values]
    return [float(value) for value in summed(world, on_device(world, values)).tolist()]


def on_device(world: ProcessGroup, values: Sequence[float]) -> Tensor:
    """Numbers of the host as a tensor [n]: by fill kernels, since a copy from the host would wait for the device."""
    return torch.stack([torch.full((), value, dtype=torch.float64, device=world.device) for value in values])


def summed(world: ProcessGroup, values: Tensor) -> Tensor:
    """A tensor summed over all processes, in place; the host does not wait."""
    if world.size > 1:
        dist.all_reduce(values)
    return values


def wait_for_all(world: ProcessGroup) -> None:
    """Goes on when every process is here."""
    if world.size > 1:
        dist.barrier()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, dist.tensor.DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor put together (every process must call this); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, dist.tensor.DTensor) else tensor


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """This process's part of a tensor that every process has, sharded as another one is."""
    if not isinstance(like, dist.tensor.DTensor):
        return value
    dim = cast('dist.tensor.Shard', like.placements[0]).dim  # of one mesh dimension, as `shard` makes them
    parts = value.chunk(like.device_mesh.size(), dim=dim)
    rank = like.device_mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else value.narrow(dim, 0, 0)


def whole_weights(model: nn.Module) -> dict[str, Tensor]:
    """Every weight on the CPU; on processes but the first it may be empty."""
    weights = cast('dict[str, Tensor]', get_model_state_dict(model, options=WHOLE))
    return {name: value.detach().cpu() for name, value in weights.items()}


def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Weights into a model, sharded or not."""
    set_model_state_dict(model, dict(weights), options=StateDictOptions(full_state_dict=True, strict=True))


def whole_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state by the names of weights, on the CPU; on processes but the first it may be empty."""
    return get_optimizer_state_dict(model, optimiser, options=WHOLE)


def load_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """State by the names of weights into an optimiser, sharded or not."""
    set_optimizer_state_dict(model, optimiser, state, options=StateDictOptions(full_state_dict=True))
