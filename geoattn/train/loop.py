"""The training loop: AdamW, warmup and cosine, checkpoints, exact resume, one process or several."""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from geoattn._optional import require
from geoattn.train import checkpoint
from geoattn.train.config import Loss, Metric, Samples, TrainConfig, TrainResult
from geoattn.train.optim import adamw, schedule
from geoattn.train.plot import write_history
from geoattn.train.randomness import own_random_state, seed_all
from geoattn.train.validate import negative, validate

if TYPE_CHECKING:
    from lightning_fabric import Fabric

KEPT = "the last checkpoint is as it was before"


def fit(
    model: nn.Module,
    train_set: Samples,
    loss: Loss,
    folder: str | Path,
    config: TrainConfig | None = None,
    *,
    valid_set: Samples | None = None,
    metric: Metric | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> TrainResult:
    """Train ``model`` and keep checkpoints, metrics and curves in ``folder``.

    A run that was killed, at whatever moment, and is called again with ``resume=True`` ends on the CPU with
    the same weights, bit for bit, as one that was not. For that, Python's, NumPy's and torch's global
    generators are seeded at each epoch from (seed, epoch, process); on return they are as they were.

    Under ``torchrun`` each process trains on its share of the samples and gradients are averaged; N processes
    then take the steps of one process with N times the batch size.

    Args:
        model: The network; it is trained in place and ends with the weights of ``last/``. If it has
            ``save_pretrained``, checkpoints are written with it.
        train_set: Samples that PyG's ``DataLoader`` can batch. If it has ``set_epoch``, that is called before
            each epoch with 0, 1, ...
        loss: ``loss(model, batch)``, a scalar; the mean over the batch if processes are to be comparable.
        folder: Where to write. It is made.
        config: How to train.
        valid_set: Samples to validate on after each epoch.
        metric: ``metric(model, batch)`` gives ``(sum, count)`` or ``{name: (sum, count)}``; sums and counts
            are added up over the validation set and divided. Higher is better; the first one is monitored.
            A single one has the function's name in the history. Default: the negative of ``loss``.
        resume: Go on from ``folder/last`` if it is there. Only ``config.epochs`` may differ, and only grow.
        fabric: Device, precision and strategy. Default: CUDA if there is any, else the CPU, in float32, in
            as many processes as ``torchrun`` started. bf16 works; fp16 with a loss scaler does not.

    Raises:
        FileExistsError: If ``folder`` holds a checkpoint and ``resume`` is False.
        ValueError: If a set is empty, nothing is trainable, or the checkpoint is of another model, dataset or
            config.
        FloatingPointError: If the loss or its gradient is not finite. The last checkpoint stays.
    """
    config = config or TrainConfig()
    for name, samples in (("train_set", train_set), ("valid_set", valid_set)):
        if samples is not None and len(samples) == 0:
            raise ValueError(f"{name} is empty")
    if valid_set is None and config.patience is not None:
        raise ValueError(f"TrainConfig.patience is {config.patience}, but there is no valid_set to watch")
    if fabric is None:
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun sets these two
        nodes = int(os.environ.get("WORLD_SIZE", "1")) // processes
        device = "cuda" if torch.cuda.is_available() else "cpu"
        fabric = require("lightning_fabric").Fabric(accelerator=device, devices=processes, num_nodes=max(nodes, 1))
    fabric.launch()
    state = TrainResult(Path(folder))
    was_training = model.training
    try:
        with own_random_state(fabric.device):
            _train(fabric, model, train_set, loss, state, config, valid_set, metric or negative(loss), resume)
    finally:
        model.train(was_training)
    if fabric.is_global_zero:
        write_history(state)
    fabric.barrier()
    return state


def _train(
    fabric: Fabric,
    model: nn.Module,
    train_set: Samples,
    loss: Loss,
    state: TrainResult,
    config: TrainConfig,
    valid_set: Samples | None,
    metric: Metric,
    resume: bool,
) -> None:
    optimizer = adamw(model, config)
    module, fabric_optimizer = fabric.setup(model, optimizer)
    run = checkpoint.describe(config, model, train_set, valid_set, fabric.world_size)
    if fabric.is_global_zero:
        state.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.recover(state.folder)
    fabric.barrier()
    if (state.folder / "last").exists():
        if not resume:
            raise FileExistsError(f"{state.folder} holds a checkpoint: pass resume=True to go on, or another folder")
        checkpoint.restore(state, model, optimizer, run)

    # One permutation per epoch, dealt out to the processes in turn; it needs only the length of the set.
    shuffle: DistributedSampler[Any] = DistributedSampler(
        cast("Any", train_set), num_replicas=fabric.world_size, rank=fabric.global_rank, seed=config.seed
    )
    loader = DataLoader(train_set, config.batch_size, sampler=shuffle, num_workers=config.workers)
    steps = config.epochs * len(loader)
    clock = _Clock(fabric, state.minutes, config.minutes)
    with tqdm(
        desc="train",
        unit="sample",
        initial=state.epoch * shuffle.total_size,
        total=config.epochs * shuffle.total_size,
        disable=not fabric.is_global_zero,
        mininterval=0.2 if sys.stderr.isatty() else 30,
        maxinterval=60,
    ) as bar:
        while not state.is_done(config):
            seed_all(config.seed, state.epoch, fabric.global_rank)
            shuffle.set_epoch(state.epoch)
            if hasattr(train_set, "set_epoch"):
                train_set.set_epoch(state.epoch)
            module.train()
            total, count = 0.0, 0
            for batch in loader:
                # The middle of the step: neither the first nor the last one has a learning rate of 0.
                progress = max((state.step + 0.5) / steps, clock.fraction)
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * schedule(min(progress, 1.0), config.warmup)
                place = f"epoch {state.epoch + 1}, step {state.step + 1}"
                value = _step(fabric, module, fabric_optimizer, loss, batch.to(fabric.device), config, place)
                state.step += 1
                total, count = total + value * batch.num_graphs, count + batch.num_graphs
                clock.read()
                bar.set_postfix(_postfix(value, state), refresh=False)
                bar.update(batch.num_graphs * fabric.world_size)
                if clock.fraction > 0:
                    bar.total = round(bar.n / max(state.step / steps, clock.fraction))
                if clock.fraction >= 1:
                    break
            _share_buffers(fabric, model)
            values = {} if valid_set is None else validate(fabric, model, valid_set, metric, config)
            rate = optimizer.param_groups[0]["lr"]
            state.add({"loss": total / count, "lr": rate, "minutes": clock.read(), **values})
            if fabric.is_global_zero and state.should_save(config):
                checkpoint.save(model, optimizer, state, run)
            fabric.barrier()


def _step(
    fabric: Fabric, module: nn.Module, optimizer: Any, loss: Loss, batch: Any, config: TrainConfig, place: str
) -> float:
    """One step of the optimizer; returns the loss, averaged over the processes, so that all fail alike."""
    local = loss(module, batch)
    value = float(cast("Tensor", fabric.all_reduce(local.detach().clone())))
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} at {place}; {KEPT}")
    optimizer.zero_grad()
    fabric.backward(local)
    norm = fabric.clip_gradients(module, optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
    if norm is not None and not norm.isfinite():
        raise FloatingPointError(f"the loss is {value}, but its gradient is {norm} at {place}; {KEPT}")
    optimizer.step()
    return value


def _share_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Give all processes the running statistics of the first one, whose model is the one that is saved."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, 0)


class _Clock:
    """Minutes of training, over all resumptions; with a budget, the same ones in all processes."""

    def __init__(self, fabric: Fabric, minutes: float, budget: float | None) -> None:
        self.fabric, self.budget = fabric, budget
        self.start = time.monotonic() - 60 * minutes
        self.read()

    def read(self) -> float:
        self.minutes = (time.monotonic() - self.start) / 60
        if self.budget is not None:
            own = torch.tensor(self.minutes, dtype=torch.float64, device=self.fabric.device)
            self.minutes = float(cast("Tensor", self.fabric.all_reduce(own)))
        return self.minutes

    @property
    def fraction(self) -> float:
        """Of the budget; 0 without one."""
        return 0.0 if self.budget is None else self.minutes / self.budget


def _postfix(loss: float, state: TrainResult) -> dict[str, str]:
    shown = {"epoch": f"{state.epoch + 1}", "loss": f"{loss:.4g}"}
    if state.history and (name := state.monitor) is not None:
        value = state.history[-1][name]
        shown[name] = "none" if value is None else f"{value:.4g}"
    return shown
