"""Constrained decoding for `policy.generation`: only ids that still lead to a whole chunk, then '|', then EOS."""

from __future__ import annotations

import torch
from torch import Tensor

from ki_vla.errors import VlaError
from ki_vla.tokens.actions import ActionStream, ActionTokens


class OnlyActions:
    """Callable as `generate(..., allowed=OnlyActions(tokens))`; one object for one call of `generate`.

    Each row of the batch has its own `ActionStream`. A row that has closed its chunk may only say EOS, and is not
    looked at after that (`generate` goes on until every row has stopped).
    """

    def __init__(self, tokens: ActionTokens) -> None:
        self._tokens = tokens
        self._streams: list[ActionStream] = []
        self._seen = 0

    def __call__(self, ids_BT: Tensor) -> Tensor:
        """Ids so far [B, T] -> bool [B, C] of ids that may follow.

        Raises:
            VlaError: the ids are not what this object allowed before, plus one more.
        """
        B, T = ids_BT.shape
        if T == 0:
            self._streams = [self._tokens.stream() for _ in range(B)]
        elif self._seen + 1 != T or len(self._streams) != B:
            raise VlaError(f'constrained decoding: expected {self._seen + 1} ids for {len(self._streams)} rows.')
        else:
            for stream, token in zip(self._streams, ids_BT[:, -1].tolist(), strict=True):
                if not stream.complete:
                    stream.push(token)
        self._seen = T
        mask_BC = torch.zeros(B, self._tokens.vocabulary.size, dtype=torch.bool)
        for row, stream in zip(mask_BC, self._streams, strict=True):
            allowed = stream.allowed()
            row[torch.from_numpy(allowed) if allowed.size else self._tokens.vocabulary.eos] = True
        return mask_BC.to(ids_BT.device)
