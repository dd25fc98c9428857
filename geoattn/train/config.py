"""What a training run is told, and what it returns."""

from dataclasses import dataclass, field
from pathlib import Path

from geoattn._arguments import checked_integer

Row = dict[str, float | None]


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    Attributes:
        epochs: Passes over the training set.
        batch_size: Samples per step and process.
        lr: Learning rate of AdamW at the end of the warmup; from there it falls to 0 along a cosine.
        weight_decay: Of AdamW, for all parameters except biases and those of one dimension (norms, gains).
        warmup: Fraction of the run in which the learning rate rises linearly from 0.
        clip_norm: Largest L2 norm of the gradient; ``inf`` for no clipping.
        seed: Order of the samples, dropout and augmentations follow from it.
        patience: Stop after so many epochs without a better validation value; None: never.
        minutes: Stop after this time, with the learning rate at 0, even if not all epochs are done.
            Validation and checkpoints count, except the last. Such a run depends on the machine's speed, so
            a resumed one is not equal to the bit. None: no limit.
        save_every: Epochs from one checkpoint to the next. The best and the last epoch are always saved.
        workers: Processes that prepare samples; None: one for each core.
        cache: Keep prepared samples in the folder of `geoattn.geometry.cache_dir`, for other runs on the same samples.
    """

    epochs: int = 100
    batch_size: int = 8
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0
    patience: int | None = None
    minutes: float | None = None
    save_every: int = 1
    workers: int | None = None
    cache: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "seed", "patience", "save_every", "workers"):
            if (value := getattr(self, name)) is not None:
                checked_integer(name, value)
        positive = ("epochs", "batch_size", "lr", "clip_norm", "patience", "minutes", "save_every")
        for name in positive:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} is {value!r}; it must be greater than 0")
        for name in ("weight_decay", "seed", "workers"):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise ValueError(f"{name} is {value!r}; it must not be negative")
        if self.seed >= 2**63:
            raise ValueError(f"seed is {self.seed}; it must be less than 2**63")
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup is {self.warmup!r}; it is a fraction of the run, in [0, 1)")


@dataclass
class TrainResult:
    """How far a run is, and where it keeps things.

    Attributes:
        folder: The folder with ``last/``, ``best/`` (if there was a validation set), ``history.json``,
            ``history.csv`` and ``curves.png``.
        epoch: Epochs done.
        step: Optimizer steps done.
        minutes: Time spent, over all resumptions.
        best_epoch: The epoch with the best monitored validation value, counted from 1; None without one.
        best_value: That value.
        higher_is_better: Whether that is the highest or the lowest one.
        history: One row per epoch: ``epoch``, ``loss``, ``lr`` (of the last step), ``minutes``, and
            ``valid_<name>`` for each metric (None where it was not a finite number).
    """

    folder: Path
    epoch: int = 0
    step: int = 0
    minutes: float = 0.0
    best_epoch: int | None = None
    best_value: float | None = None
    higher_is_better: bool = True
    history: list[Row] = field(default_factory=list)

    @property
    def checkpoint(self) -> Path:
        """The checkpoint to use: ``folder/best``, or ``folder/last`` where no validation value picked one."""
        return self.folder / ("last" if self.best_epoch is None else "best")

    @property
    def monitor(self) -> str | None:
        """Name of the validation value that picks the best epoch: the first one in the history."""
        return next((name for row in self.history for name in row if name.startswith("valid_")), None)

    def add(self, row: Row) -> None:
        """Count one more epoch, with its losses, time and validation values."""
        self.epoch += 1
        self.minutes = row["minutes"] or 0.0
        self.history.append({"epoch": self.epoch, **row})
        value = row.get(self.monitor or "")
        sign = 1 if self.higher_is_better else -1
        if value is not None and (self.best_value is None or sign * value > sign * self.best_value):
            self.best_epoch, self.best_value = self.epoch, value

    def is_done(self, config: TrainConfig) -> bool:
        """Whether the epochs, the minutes or the patience are used up."""
        return (
            self.epoch >= config.epochs
            or (config.minutes is not None and self.minutes >= config.minutes)
            or (config.patience is not None and self.epoch - (self.best_epoch or 0) >= config.patience)
        )

    def should_save(self, config: TrainConfig) -> bool:
        """Whether the epoch just done gets a checkpoint: each ``save_every``-th, the best, the last."""
        return self.epoch == self.best_epoch or self.epoch % config.save_every == 0 or self.is_done(config)
