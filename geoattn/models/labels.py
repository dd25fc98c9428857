"""What the tasks that give labels share: the loss, the metrics, the classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.data import Data

from geoattn.data import (
    FEATURES,
    IGNORED,
    LabelledSamples,
    ObjectAugment,
    PointInputs,
    RandomDeform,
    SceneAugment,
    check_labels,
    class_weights,
    crop_to_sphere,
)
from geoattn.metrics import PartIoU
from geoattn.models.network import Network
from geoattn.models.points.inputs import PointConfig, PointNetwork
from geoattn.models.registry import create_model, list_models, model_config
from geoattn.train import Samples, Task, TrainConfig
from geoattn.train.task import FROM_DATA, Prepare

if TYPE_CHECKING:
    from torchmetrics import Metric
    from typing_extensions import Self


@dataclass(frozen=True)
class LabelTask(Task):
    """A task whose samples have labels.

    Attributes:
        copies: Variants of each training sample, itself included; the others are slightly deformed. None: 4 of a mesh,
            and of a cloud another one in each epoch.
        crop: Points of the random sphere that is cut out of larger training clouds.
        attribute_dropout: How often a training cloud is read without colors, normals and intensities, so that the
            network can do without.
        class_weights: Weights of the classes in the loss: all equal, or "balanced" by how rare they are.
        label_smoothing: Share of the target that goes to all classes alike (Szegedy et al. 2016).
        weights: The weights that "balanced" gave on the training samples.
    """

    training: ClassVar[TrainConfig] = TrainConfig(epochs=60, batch_size=4)

    copies: int | None = None
    crop: int = 50_000
    attribute_dropout: float = 0.1
    class_weights: Literal["equal", "balanced"] = "equal"
    label_smoothing: float = 0.1
    weights: tuple[float, ...] = field(default=(), metadata=FROM_DATA)

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", tuple(self.weights))  # JSON has lists
        if self.copies is not None and self.copies < 1:
            raise ValueError(f"copies is {self.copies}; it must be at least 1, the sample itself")
        if self.crop < 1:
            raise ValueError(f"crop is {self.crop}; it must be at least 1 point")
        if not 0 <= self.attribute_dropout <= 1:
            raise ValueError(f"attribute_dropout is {self.attribute_dropout}; it must be in [0, 1]")
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
        """With the weights of the classes and the number of variants that follow from the training samples."""
        labelled, task = cast("LabelledSamples", samples), self
        if self.copies is None and len(labelled) and labelled[0].face is not None:
            task = replace(task, copies=4)
        if self.class_weights == "equal":
            return task
        return replace(task, weights=tuple(class_weights(labelled, len(labelled.names)).tolist()))

    def prepare(self, model: nn.Module) -> Prepare:
        """The network's own transform, after random changes where a variant is asked for."""
        network = cast("Network", model)
        if isinstance(network, PointNetwork):
            config, share = network.config, self.attribute_dropout
            scene = SceneAugment(config.grid_size or 0.02, share)
            augment = ObjectAugment(attribute_dropout=share) if config.unit_sphere else scene
            return PreparePoints(network.input_transform(), len(config.names), self.crop, augment)
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
        self.update(metrics, model(batch), batch)

    def update(self, metrics: Mapping[str, Metric], logits: Tensor, batch: Data) -> None:
        """Update metrics of labels with logits."""
        label = batch.y
        if "point_y" in batch:  # one point of each voxel was read, and all have labels
            logits, label = logits[batch.voxel_index], batch.point_y
        prediction = logits.argmax(-1)
        for metric in metrics.values():
            if isinstance(metric, PartIoU):
                metric.update(logits, label, batch.category, batch.batch[batch.voxel_index])
            else:
                metric.update(prediction, label)


def new_network(samples: LabelledSamples, name: str, task: str, options: dict[str, Any]) -> Network:
    """A new network for samples, with what follows from them in its config.

    Args:
        samples: The training samples.
        name: The network's name.
        task: Name of the task, for what to choose instead.
        options: Fields of its config.

    Raises:
        ValueError: If it reads meshes and the samples are clouds, or it cannot label what they label.
    """
    most = 4 if samples[0].face is None else 20  # scans may be large
    some = [samples[i] for i in range(min(len(samples), most))]
    config = model_config(name)
    clouds = [other for other in list_models(task) if issubclass(model_config(other), PointConfig)]
    if any(sample.face is None for sample in some) and name not in clouds:
        raise ValueError(
            f"the samples are point clouds, and {name} reads meshes; choose a network of clouds: {', '.join(clouds)} "
            "(on the command line --network)"
        )
    facts: dict[str, Any] = {"names": samples.names, "labelled": samples.labelled}
    if name in clouds:
        if samples.labelled not in ("vertex", "whole"):
            raise ValueError(f"the samples have labels for each {samples.labelled}, and {name} labels points")
        if options.get("features") is None:
            there = [key for key in FEATURES if key == "pos" or all(key in sample for sample in some)]
            options = {**options, "features": tuple(there)}
        facts["parts_of_category"] = getattr(samples, "parts_of_category", ())
    elif samples.labelled != "whole":
        facts["faces"] = max(sample.face.size(1) for sample in some)
    known = {field.name for field in fields(config)}
    return create_model(name, **{key: fact for key, fact in facts.items() if key in known}, **options)


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


@dataclass(frozen=True)
class PreparePoints:
    """Makes of a labelled cloud what a network of clouds reads."""

    transform: PointInputs
    num_classes: int
    crop: int
    augment: SceneAugment | ObjectAugment

    def __call__(self, sample: Data, generator: torch.Generator | None, /) -> Data:
        """The cloud, or with a generator a random variant of a part of it, with labels that were checked."""
        cloud = sample.clone()
        cloud.y = check_labels(sample.y, self.num_classes, name=sample.get("name") or "the sample")
        if generator is None:
            return self.transform(cloud)
        cloud = replace(self.augment, generator=generator)(cloud)
        return crop_to_sphere(replace(self.transform, generator=generator)(cloud), self.crop, generator)
