"""The training loop: AdamW, warmup and cosine, checkpoints, exact resume, one process or several."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DistributedSampler
from torch_geometric.loader import DataLoader

from geoattn.train import checkpoint
from geoattn.train.config import Row, TrainConfig, TrainResult
from geoattn.train.evaluate import compute, measure
from geoattn.train.fabric import make_fabric
from geoattn.train.optim import adamw, schedule
from geoattn.train.plot import write_curves, write_history
from geoattn.train.prepare import Prepared, spare_cores
from geoattn.train.progress import progress_bar
from geoattn.train.randomness import own_random_state, seed_all
from geoattn.train.task import Samples, Task

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ADVICE = "a lower learning rate (lr) may help; a checkpoint of an earlier epoch is as it was"


def fit(
    task: Task,
    model: nn.Module,
    samples: Samples,
    folder: str | Path,
    config: TrainConfig | None = None,
    *,
    valid_samples: Samples | None = None,
    resume: bool = False,
    fabric: Fabric | None = None,
) -> TrainResult:
    """Train a network and keep checkpoints, metrics and curves in ``folder``.

    A run that was killed, at whatever moment, and is called again with ``resume=True`` ends on the CPU with the same
    weights, bit for bit, as one that was not. For that, Python's, NumPy's and torch's global generators are seeded at
    each epoch from (seed, epoch, process); on return they are as they were. A run that is complete is left as it is.

    Under ``torchrun`` each process trains on its share of the samples and gradients are averaged; N processes then take
    the steps of one process with N times the batch size.

    Args:
        task: What is learned: how samples are prepared, the loss, the metrics.
        model: The network (`Task.model`); it is trained in place and ends with the weights of ``last/``. If it has
            ``save_pretrained``, checkpoints are written with it.
        samples: The training samples, as `Task.dataset` gives them.
        folder: Where to write. It is made.
        config: How to train; default: as the task says.
        valid_samples: To measure after each epoch. The task's first metric chooses the best one.
        resume: Go on from ``folder/last`` if it is there. Only ``config.epochs`` may differ, and only grow.
        fabric: Device, precision and strategy; default: `make_fabric`. bfloat16 works; float16 with a loss scaler does
            not.

    Raises:
        FileExistsError: If ``folder`` holds a checkpoint and ``resume`` is False.
        ValueError: If a set is empty, nothing is trainable, or the checkpoint is of another task, model, data set or
            config.
        FloatingPointError: If the loss or its gradient is not finite. The last checkpoint stays.
    """
    config = config or task.training
    for name, given in (("samples", samples), ("valid_samples", valid_samples)):
        if given is not None and len(given) == 0:
            raise ValueError(f"{name} is empty")
    if valid_samples is None and config.patience is not None:
        raise ValueError(f"patience is {config.patience}, but there are no validation samples to watch")
    for given in (samples, valid_samples):
        if given is not None:
            task.check(model, given)
    fabric = fabric or make_fabric()
    fabric.launch()
    state = TrainResult(Path(folder))
    was_training = model.training
    try:
        with own_random_state(fabric.device):
            _train(fabric, task.adapted(samples), model, samples, state, config, valid_samples, resume)
    finally:
        model.train(was_training)
    if fabric.is_global_zero:
        write_curves(state)
    fabric.barrier()
    return state


def _train(
    fabric: Fabric,
    task: Task,
    model: nn.Module,
    samples: Samples,
    state: TrainResult,
    config: TrainConfig,
    valid_samples: Samples | None,
    resume: bool,
) -> None:
    optimizer = adamw(model, config)
    module, fabric_optimizer = fabric.setup(model, optimizer)
    run = checkpoint.describe(task, config, model, samples, valid_samples, fabric.world_size)
    if fabric.is_global_zero:
        state.folder.mkdir(parents=True, exist_ok=True)
        checkpoint.recover(state.folder)
    fabric.barrier()
    if (state.folder / "last").exists():
        if not resume:
            raise FileExistsError(f"{state.folder} holds a checkpoint: pass resume=True to go on, or another folder")
        checkpoint.restore(state, model, optimizer, run)
        if state.is_done(config):
            return

    prepare = task.prepare(model)
    workers, cache = config.workers, config.cache
    seed_all(config.seed, 0, 0)  # for samples that draw from the global generators when they are read
    train_set = Prepared(samples, prepare, task.copies, config.seed, workers, cache, "preparing training samples")
    valid_set = None
    if valid_samples is not None:
        title = "preparing validation samples"
        valid_set = Prepared(valid_samples, prepare, workers=workers, cache=cache, title=title)
    # One permutation per epoch, dealt out to the processes in turn; it needs only the length of the set.
    shuffle: DistributedSampler[Any] = DistributedSampler(
        cast("Any", train_set), num_replicas=fabric.world_size, rank=fabric.global_rank, seed=config.seed
    )
    readers = 0  # processes that prepare what is not kept
    if task.copies is None:
        readers = spare_cores() if workers is None else workers
    loader = DataLoader(train_set, config.batch_size, sampler=shuffle, num_workers=readers)
    steps = config.epochs * len(loader)
    clock = _Clock(fabric, state.minutes, config.minutes)
    with progress_bar(
        desc="training",
        unit="sample",
        initial=state.epoch * shuffle.total_size,
        total=config.epochs * shuffle.total_size,
        disable=not fabric.is_global_zero,
    ) as bar:
        while not state.is_done(config):
            seed_all(config.seed, state.epoch, fabric.global_rank)
            shuffle.set_epoch(state.epoch)
            train_set.set_epoch(state.epoch)
            module.train()
            total, count = 0.0, 0
            for batch in loader:
                # The middle of the step: neither the first nor the last one has a learning rate of 0.
                progress = max((state.step + 0.5) / steps, clock.fraction)
                for group in optimizer.param_groups:
                    group["lr"] = config.lr * schedule(min(progress, 1.0), config.warmup)
                place = f"epoch {state.epoch + 1}, step {state.step + 1}"
                value = _step(fabric, module, fabric_optimizer, task, fabric.to_device(batch), config, place)
                size = task.size(batch)
                state.step += 1
                total, count = total + value * size, count + size
                clock.read()
                bar.set_postfix(_postfix(value, state), refresh=False)
                bar.update(size * fabric.world_size)
                if clock.fraction > 0:
                    bar.total = round(bar.n / max(state.step / steps, clock.fraction))
                if clock.fraction >= 1:
                    break
            _share_buffers(fabric, model)
            values = {} if valid_set is None else _validate(fabric, task, model, valid_set, state, config)
            rate = optimizer.param_groups[0]["lr"]
            state.add({"loss": total / count, "lr": rate, "minutes": clock.read(), **values})
            if fabric.is_global_zero and state.should_save(config):
                checkpoint.save(model, optimizer, state, run)
            if fabric.is_global_zero:
                write_history(state)
            fabric.barrier()


def _validate(
    fabric: Fabric, task: Task, model: nn.Module, valid_set: Prepared, state: TrainResult, config: TrainConfig
) -> Row:
    """The scalar metrics over the whole set, None where one is not a finite number. Every sample counts once."""
    metrics = task.metrics(model)
    monitor, first = next(iter(metrics.items()))
    if first.higher_is_better is None:
        raise ValueError(f"metric {monitor!r} chooses the best epoch, but does not say if higher_is_better")
    state.higher_is_better = first.higher_is_better
    share = range(fabric.global_rank, len(valid_set), fabric.world_size)
    loader = DataLoader(valid_set, config.batch_size, sampler=share)
    # The bare model: processes may differ in their number of batches, and the wrapper would wait for them.
    with fabric.autocast():
        measure(task, metrics, model, (fabric.to_device(batch) for batch in loader))
    values = {name: value.item() for name, value in compute(metrics).items() if value.ndim == 0}
    return {f"valid_{name}": value if math.isfinite(value) else None for name, value in values.items()}


def _step(
    fabric: Fabric, module: nn.Module, optimizer: Any, task: Task, batch: Any, config: TrainConfig, place: str
) -> float:
    """One step of the optimizer; returns the loss, averaged over the processes, so that all fail alike."""
    local = task.loss(module, batch)
    value = float(cast("Tensor", fabric.all_reduce(local.detach().clone())))
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} at {place}; {ADVICE}")
    optimizer.zero_grad()
    fabric.backward(local)
    norm = fabric.clip_gradients(module, optimizer, max_norm=config.clip_norm, error_if_nonfinite=False)
    if norm is not None and not norm.isfinite():
        raise FloatingPointError(f"the loss is {value}, but its gradient is {norm} at {place}; {ADVICE}")
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
