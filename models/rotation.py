"""Which orthogonal matrix makes the prefixes of a fixed encoder's vectors good small vectors?

An orthogonal matrix keeps every inner product of full vectors, so it costs no quality at full
length; it only decides which numbers come first.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as torch_functions
from numpy.typing import NDArray

PREFIXES = (256, 128, 64, 32)
TEMPERATURE = 0.05
NEIGHBOURS = 8


def principal_axes(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the eigenvectors of the second moment, float32 (dim, dim), largest first."""
    moment = vectors.T.astype(np.float64) @ vectors / len(vectors)
    return np.ascontiguousarray(np.linalg.eigh(moment)[1][:, ::-1], dtype=np.float32)


def fit_rotation(
    vectors: NDArray[np.float32], *, steps: int = 700, pairs: int = 192, seed: int = 1
) -> NDArray[np.float32]:
    """Fit an orthogonal R so that prefixes of `vectors @ R` rank texts as full vectors do.

    Args:
        vectors: Unit vectors, float32 (n, dim).
        steps: Adam steps.
        pairs: Texts a step, each with one of its nearest neighbours: without near texts in a
            batch the loss would never see the differences that decide a ranking.
        seed: Fixes the batches.

    Returns:
        R, float32 (dim, dim).
    """
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    points = torch.from_numpy(vectors)
    neighbours = _neighbours(points)
    matrix = torch.nn.Parameter(torch.from_numpy(principal_axes(vectors)))
    optimizer = torch.optim.Adam([matrix], lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        anchors = torch.randint(0, len(points), (pairs,), generator=chance)
        picks = torch.randint(0, NEIGHBOURS, (pairs,), generator=chance)
        batch = points[torch.cat([anchors, neighbours[anchors, picks]])]
        loss = _prefix_loss(batch, batch @ matrix)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 9 or step == steps - 1:
            # The nearest orthogonal matrix; at every step it would cost more than the step.
            with torch.no_grad():
                left, _, right = torch.linalg.svd(matrix.double())
                matrix.copy_(left @ right)
        if step % 100 == 0:
            print(f"rotation: step {step} of {steps}, loss {loss.item():.4f}", flush=True)
    return matrix.detach().numpy().copy()


def _neighbours(points: torch.Tensor) -> torch.Tensor:
    parts = [
        (part @ points.T).topk(NEIGHBOURS + 1, 1).indices[:, 1:] for part in points.split(2000)
    ]
    return torch.cat(parts)


def _prefix_loss(full: torch.Tensor, rotated: torch.Tensor) -> torch.Tensor:
    count = len(full)
    others = ~torch.eye(count, dtype=torch.bool)
    wanted = (full @ full.T)[others].view(count, -1)
    shares = torch_functions.softmax(wanted / TEMPERATURE, 1)
    loss = torch.zeros(())
    for size in PREFIXES:
        prefix = torch_functions.normalize(rotated[:, :size], dim=1)
        found = (prefix @ prefix.T)[others].view(count, -1)
        logs = torch_functions.log_softmax(found / TEMPERATURE, 1)
        loss = loss + torch_functions.kl_div(logs, shares, reduction="batchmean")
        loss = loss + 5 * torch_functions.mse_loss(found, wanted)
    return loss
