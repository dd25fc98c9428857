"""What is particular to a task: all that training, evaluation and the command line need to know of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor, nn

from geoattn.train.config import TrainConfig

if TYPE_CHECKING:
    from torchmetrics import Metric
    from typing_extensions import Self

FROM_DATA: dict[str, Any] = {"from_data": True}
"""Metadata of a field of a task or of a network's config that follows from the data, and so is no option."""

Split = Literal["train", "valid", "test"]
Prepare = Callable[[Any, torch.Generator | None], Any]
"""Makes of a sample what the network reads; with a generator, of a random variant of it."""


class Samples(Protocol):
    """A data set: a list of ``Data``, a PyG ``Dataset``, or whatever has a length and items."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


class Task(ABC):
    """A task: its data, how they are prepared, its network, loss and metrics.

    A subclass is a frozen dataclass. Its fields are the options of ``geoattn train <name>``, with the ``Attributes:``
    of its docstring as their help; they are kept beside every checkpoint. `geoattn.models.register_task` makes the task
    known to the command line.

    Attributes:
        name: What the task is called on the command line.
        network: Name of the network that is trained where none is chosen (`geoattn.models.list_models`).
        training: How to train where nothing else is said.
        copies: How many variants of each training sample are prepared, the sample itself included; they take turns over
            the epochs. None: a new variant for each epoch, prepared as it is read.
    """

    name: ClassVar[str]
    network: ClassVar[str]
    training: ClassVar[TrainConfig] = TrainConfig()
    copies: int | None = 1

    @abstractmethod
    def dataset(self, data: str, split: Split, samples: int | None = None) -> Samples:
        """The samples of a split.

        Args:
            data: Name of a data set, or its folder or file.
            split: Which split.
            samples: How many of a generator's samples, or at most how many of a data set's; None: its default, or all.
        """

    @abstractmethod
    def model(self, samples: Samples, network: str | None = None, **options: Any) -> nn.Module:
        """A new network for the training samples; ``options`` are fields of its config."""

    def check(self, model: nn.Module, samples: Samples) -> None:
        """Raise a ValueError if ``model`` cannot be measured on ``samples``, as where it was made for other classes."""
        return

    def adapted(self, samples: Samples) -> Self:
        """This task with what follows from the training samples, such as the weights of classes."""
        return self

    def prepare(self, model: nn.Module) -> Prepare:
        """What makes of a sample, or of a random variant of it, what ``model`` reads."""
        return as_it_is

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss of a batch, a scalar; the mean over the batch if processes are to be comparable."""

    @abstractmethod
    def metrics(self, model: nn.Module) -> dict[str, Metric]:
        """New metrics by their names. The first one, a scalar, chooses the best epoch by its ``higher_is_better``."""

    @abstractmethod
    def measure(self, metrics: Mapping[str, Metric], model: nn.Module, batch: Any) -> None:
        """Run the network on a batch and update the metrics."""

    def size(self, batch: Any) -> int:
        """How many samples a batch has."""
        return int(batch.num_graphs)


AnyTask = TypeVar("AnyTask", bound=Task)


def as_it_is(sample: Any, generator: torch.Generator | None = None) -> Any:
    """The sample itself."""
    return sample
