"""What the tasks that give labels share: the loss, the metrics, the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from geoattn.data import IGNORED, LabelledSamples, RandomDeform, check_labels, class_weights
from geoattn.models.network import Network
from geoattn.train import Samples, Task, TrainConfig
from geoattn.train.task import FROM_DATA, Prepare

if TYPE_CHECKING:
    from torchmetrics import Metric
    from typing_extensions import Self


@dataclass(frozen=True)
class LabelTask(Task):
    """A task whose samples have labels.

    Attributes:
        copies: Variants of each training sample, itself included: the others are slightly deformed.
        class_weights: Weights of the classes in the loss: all equal, or "balanced" by how rare they are.
        label_smoothing: Share of the target that goes to all classes alike (Szegedy et al. 2016).
        weights: The weights that "balanced" gave on the training samples.
    """

    training: ClassVar[TrainConfig] = TrainConfig(epochs=60, batch_size=4)

    copies: int = 4
    class_weights: Literal["equal", "balanced"] = "equal"
    label_smoothing: float = 0.1
    weights: tuple[float, ...] = field(default=(), metadata=FROM_DATA)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))  # JSON has lists
        if self.copies < 1:
            raise ValueError(f"copies is {self.copies}; it must be at least 1, the sample itself")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be in [0, 1)")
        if self.class_weights not in ("equal", "balanced"):
            raise ValueError(f'class_weights must be "equal" or "balanced", got {self.class_weights!r}')

    def check(self, model: nn.Module, samples: Samples) -> None:
        """Raise a ValueError if the samples have other classes than ``model`` was made for, or label something else."""
        config = cast("Network", model).config
        names, labelled = getattr(samples, "names", config.names), getattr(samples, "labelled", None)
        expected = getattr(config, "labelled", "whole")
        if tuple(names) != config.names:
            raise ValueError(
                f"the data have the classes {', '.join(names)}, but the network was made for {', '.join(config.names)}"
            )
        if labelled not in (None, expected):
            raise ValueError(f"the data have labels for each {labelled}, but the network labels each {expected}")

    def adapted(self, samples: Samples) -> Self:
        """With the weights of the classes, where they follow from the training samples."""
        if self.class_weights == "equal":
            return self
        labelled = cast("LabelledSamples", samples)
        return replace(self, weights=tuple(class_weights(labelled, len(labelled.names)).tolist()))

    def prepare(self, model: nn.Module) -> Prepare:
        """The network's own transform, after a slight deformation where a variant is asked for."""
        network = cast("Network", model)
        return PrepareLabelled(network.input_transform(), len(network.config.names))

    def loss(self, model: nn.Module, batch: Data) -> Tensor:
        """Cross-entropy with smoothed labels; those to be ignored are left out."""
        logits = model(batch)
        if (batch.y == IGNORED).all():
            return 0 * logits.sum()
        weight = logits.new_tensor(self.weights) if self.weights else None
        return F.cross_entropy(logits, batch.y, weight, ignore_index=IGNORED, label_smoothing=self.label_smoothing)

    def measure(self, metrics: Mapping[str, Metric], model: nn.Module, batch: Data) -> None:
        """Update metrics of labels with the most probable ones."""
        prediction = model(batch).argmax(-1)
        for metric in metrics.values():
            metric.update(prediction, batch.y)


@dataclass(frozen=True)
class PrepareLabelled:
    """Makes of a labelled sample what a network reads."""

    transform: Callable[[Data], Data]
    num_classes: int

    def __call__(self, sample: Data, generator: torch.Generator | None, /) -> Data:
        """The sample, or with a generator a deformed one, with labels that were checked."""
        label = check_labels(sample.y, self.num_classes, name=sample.get("name") or "the sample")
        shape = sample if generator is None else RandomDeform(generator)(sample)
        out = self.transform(Data(pos=shape.pos, face=shape.face, y=label))
        if "edge_soft" in sample:  # what MeshCNN's metric needs, which is defined on the mesh
            out.edge_soft, out.vertex, out.face = sample.edge_soft, sample.pos, sample.face
        return out
