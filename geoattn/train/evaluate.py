"""Evaluation: the metrics of a task over a whole set, by all processes together."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from geoattn._optional import require
from geoattn.train.fabric import Precision
from geoattn.train.prepare import Prepared
from geoattn.train.task import Samples, Task

if TYPE_CHECKING:
    from torchmetrics import Metric


def evaluate(
    task: Task,
    model: nn.Module,
    samples: Samples,
    *,
    batch_size: int | None = None,
    precision: Precision = "float32",
    workers: int | None = None,
) -> dict[str, Tensor]:
    """Measure a network.

    It runs on the device it is on, in evaluation mode, and is given back in the mode it was in. In several processes
    (``torchrun``) each measures its share, and all get the figures of the whole.

    Args:
        task: What is measured, and how samples are prepared.
        model: The network.
        samples: Labelled samples, as `Task.dataset` gives them.
        batch_size: Samples at a time; default: as the task trains.
        precision: ``bfloat16`` computes products and attention in bfloat16.
        workers: Processes that prepare samples; default: one for each core.

    Returns:
        The metrics by their names, on the CPU: scalars, and the matrix ``confusion`` ``[K, K]`` for labels.

    Raises:
        ValueError: If there are no samples, or the network was not made for them.
    """
    if len(samples) == 0:
        raise ValueError("there are no samples to measure on")
    task.check(model, samples)
    prepared = Prepared(samples, task.prepare(model), workers=workers, title="preparing samples to measure on")
    device = next(model.parameters()).device
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
    to_device = require("lightning_fabric.utilities").move_data_to_device
    metrics = task.metrics(model)
    loader = DataLoader(prepared, batch_size or task.training.batch_size, sampler=_share(prepared))
    with autocast:
        measure(task, metrics, model, (to_device(batch, device) for batch in tqdm(loader, "measuring", disable=None)))
    return compute(metrics)


def measure(task: Task, metrics: dict[str, Metric], model: nn.Module, batches: Iterable[Any]) -> None:
    """Update the metrics with batches on the model's device."""
    device = next(model.parameters()).device
    for metric in metrics.values():
        metric.to(device)
    with torch.no_grad(), evaluating(model):
        for batch in batches:
            task.measure(metrics, model, batch)


def compute(metrics: dict[str, Metric]) -> dict[str, Tensor]:
    """The values of the metrics over all processes, on the CPU, without those that nothing was measured for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*called before the ``update`` method")  # this process had no share
        values = {name: metric.compute().detach().cpu() for name, metric in metrics.items()}
    return {
        name: value for name, value in values.items() if metrics[name].update_called or bool(value.isfinite().all())
    }


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, the network is in evaluation mode; afterwards each of its modules is in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _share(samples: Samples) -> range:
    """The samples that this process measures: every sample counts once."""
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return range(distributed.get_rank(), len(samples), distributed.get_world_size())
    return range(len(samples))
