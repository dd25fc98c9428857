"""Validation: metrics over a whole set, by all processes together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch_geometric.loader import DataLoader

from geoattn.train.config import Loss, Metric, Samples, Sums, TrainConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


@torch.no_grad()
def validate(
    fabric: Fabric, model: nn.Module, valid_set: Samples, metric: Metric, config: TrainConfig
) -> dict[str, float | None]:
    """Each metric over the whole set, None where it is not a finite number. Every sample counts once."""
    # The bare model: processes may differ in their number of batches, and the wrapper would wait for them.
    model.eval()
    alone = getattr(metric, "__name__", "")
    alone = alone if alone.isidentifier() else "metric"  # a lambda has no good one
    share = range(fabric.global_rank, len(valid_set), fabric.world_size)
    sums: dict[str, list[float]] = {}
    for batch in DataLoader(valid_set, config.batch_size, sampler=share, num_workers=config.workers):
        with fabric.autocast():
            parts = metric(model, batch.to(fabric.device))
        for name, (total, count) in (parts if isinstance(parts, Mapping) else {alone: parts}).items():
            both = sums.setdefault(f"valid_{name}", [0.0, 0.0])
            both[0] += float(total)
            both[1] += float(count)
    shares: list[Any] = [sums]
    if fabric.world_size > 1:
        shares = [None] * fabric.world_size
        torch.distributed.all_gather_object(shares, sums)
    values: dict[str, float | None] = {}
    for name in dict.fromkeys(name for part in shares for name in part):
        total, count = (sum(part[name][i] for part in shares if name in part) for i in (0, 1))
        values[name] = total / count if count and math.isfinite(total / count) else None
    return values


def negative(loss: Loss) -> Metric:
    """The loss as a metric: per sample, and higher is better."""

    def negative_loss(model: nn.Module, batch: Any) -> dict[str, Sums]:
        return {"negative_loss": (-loss(model, batch) * batch.num_graphs, batch.num_graphs)}

    return negative_loss
