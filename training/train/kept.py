"""Samples whose keys and values are computed once, for a recipe that leaves the backbone as it is.

What the action expert reads of a sample is then the same in every epoch; only noise and time are new. So a pass of the
eyes and the backbone is saved at every step, which is most of its price. What is kept is in memory, in half precision:
for the policy of `config/train/demo.yaml` some 40 kB of keys and values a sample.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from ki_vla.model import flow
from ki_vla.model.kivla import KiVla, Prefix
from training.errors import TrainingError
from training.samples.collator import Packet, mixed


def prefixed(model: KiVla, packet: Packet, device: torch.device) -> Packet:
    """A packet with what the backbone makes of it, on the host.

    Raises:
        TrainingError: keys or values that half precision cannot hold.
    """
    batch = packet.batch.to(device)
    found = model.prefill(
        batch.images_BVCHW, batch.image_mask_BV, batch.prompt_BL, batch.prompt_mask_BL, batch.state_BS
    )
    k, v = (torch.as_tensor(each).to('cpu', torch.float16) for each in (found.k, found.v))
    if not (k.isfinite().all() and v.isfinite().all()):
        raise TrainingError('stage.kept: keys or values of the backbone are too large to be kept; leave it out.')
    return replace(packet, prefix=replace(_on(found, torch.device('cpu')), k=k, v=v, passing_BnD=()))


def sent(prefix: Prefix, device: torch.device) -> Prefix:
    """A kept prefix as the model reads it: on the device, keys and values in float32 again."""
    k, v = (torch.as_tensor(each).to(device).float() for each in (prefix.k, prefix.v))
    return replace(_on(prefix, device), k=k, v=v)


def _on(prefix: Prefix, device: torch.device) -> Prefix:
    """What is said beside keys and values, on a device."""
    state_BS, said_BC = (None if each is None else each.to(device) for each in (prefix.state_BS, prefix.said_BC))
    return replace(prefix, mask_BS=prefix.mask_BS.to(device), state_BS=state_BS, said_BC=said_BC)


class KeptSamples:
    """Packets that are given again and again, each time with fresh noise and in another order of steps.

    The same for the same seed: when a run is resumed in the middle, and whatever a step is cut into.

    Args:
        packets: of this process, with their prefixes.
        seed: of the run.
        accumulate: packets of a step.
    """

    def __init__(self, packets: Iterable[Packet], seed: int, accumulate: int = 1) -> None:
        self.packets, self._seed, self._accumulate = list(packets), seed, accumulate

    @property
    def samples(self) -> int:
        """How many there are."""
        return sum(len(packet.numbers) for packet in self.packets)

    @property
    def nbytes(self) -> int:
        """Memory that keys and values take."""
        kept = [each for packet in self.packets if packet.prefix for each in (packet.prefix.k, packet.prefix.v)]
        return sum(each.nbytes for each in kept if isinstance(each, Tensor))

    def after(self, steps: int) -> Generator[Packet, None, None]:
        """Packets without end, after those of so many steps."""
        first = range(0, len(self.packets), self._accumulate)
        while True:
            epoch, place = divmod(steps, len(first))
            order = torch.randperm(len(first), generator=self._generator(epoch, 0)).tolist()
            for number in order[place:]:
                for packet in self.packets[first[number] : first[number] + self._accumulate]:
                    yield self._fresh(packet, epoch)
                steps += 1

    def _fresh(self, packet: Packet, epoch: int) -> Packet:
        noise, tau = [], []
        for number in packet.numbers:
            generator = self._generator(epoch, number + 1)
            noise.append(flow.sample_noise(tuple(packet.noise_BRHA.shape[1:]), generator))
            tau.append(flow.sample_tau(tuple(packet.tau_BR.shape[1:]), generator))
        return replace(packet, noise_BRHA=torch.stack(noise), tau_BR=torch.stack(tau))

    def _generator(self, epoch: int, number: int) -> torch.Generator:
        return torch.Generator().manual_seed(mixed(mixed(self._seed, epoch + 1), number))
