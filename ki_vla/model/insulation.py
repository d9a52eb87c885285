"""Knowledge insulation: the attention of the paper's equations 5 and 6, and the one place where a gradient is stopped.

Queries of a later segment (the action expert's tokens "a") look at an earlier context (the backbone's tokens "b") and
at their own segment, in one softmax:

    (P_ab, P_aa) = softmax( [ Q_a sg(K_b)^T ,  Q_a K_a^T ] + A )        equation 5, second row
    E_a          = P_ab sg(V_b) + P_aa V_a                              equation 6, second row

sg lets values through and no gradient: what the expert learns never reaches the backbone. The backbone's own rows
hold no term of the expert at all (P_ba = 0), so they are plain attention and live in `gemma.py`.

Shape legend: B batch, R draws of (tau, noise) that share one context, Q queries, S context tokens, N heads, G key/value
heads, M = N/G heads that share one of them, K head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor


def graded(x: Tensor, share: float) -> Tensor:
    """The same values, with a share of their gradient: 1 lets it through whole, 0 is sg(.)."""
    return share * x + (1.0 - share) * x.detach()


def attend(
    q_BRQNK: Tensor,
    k_BRQGK: Tensor,
    v_BRQGK: Tensor,
    k_BSGK: Tensor,
    v_BSGK: Tensor,
    sees_BQS: Tensor,
    sees_BQQ: Tensor,
    insulate: bool,
) -> Tensor:
    """Equations 5 and 6 for scaled and rotated queries; the masks broadcast over B and Q. Returns [B, R, Q, N, K]."""
    if insulate:
        k_BSGK, v_BSGK = k_BSGK.detach(), v_BSGK.detach()  # sg(.)
    B, R, Q, N, K = q_BRQNK.shape
    G, S = k_BSGK.shape[2], k_BSGK.shape[1]
    M = N // G
    q = q_BRQNK.reshape(B, R, Q, G, M, K).permute(0, 3, 1, 4, 2, 5)
    # All draws and heads are rows of one product with the context, which is never copied.
    logits_ab = q.reshape(B, G, R * M * Q, K) @ k_BSGK.permute(0, 2, 3, 1)
    logits_aa = q.reshape(B, G, R, M * Q, K) @ k_BRQGK.permute(0, 3, 1, 4, 2)
    least = torch.finfo(torch.float32).min
    logits_ab = logits_ab.view(B, G, R, M, Q, S).float().masked_fill(~sees_BQS[:, None, None, None], least)
    logits_aa = logits_aa.view(B, G, R, M, Q, Q).float().masked_fill(~sees_BQQ[:, None, None, None], least)
    P = torch.cat([logits_ab, logits_aa], dim=-1).softmax(dim=-1).to(v_BRQGK.dtype)
    P_ab, P_aa = P.split([S, Q], dim=-1)
    E_ab = P_ab.reshape(B, G, R * M * Q, S) @ v_BSGK.transpose(1, 2)
    E_aa = P_aa.reshape(B, G, R, M * Q, Q) @ v_BRQGK.permute(0, 3, 1, 2, 4)
    E_BGRMQK: Tensor = E_ab.view(B, G, R, M, Q, K) + E_aa.view(B, G, R, M, Q, K)
    return E_BGRMQK.permute(0, 2, 4, 1, 3, 5).reshape(B, R, Q, N, K)
