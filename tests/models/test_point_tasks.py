"""The tasks that give labels, on clouds."""

import math

import pytest
import torch
from torch_geometric.data import Batch, Data

from geoattn.data import load_dataset
from geoattn.models import create_model
from geoattn.models.classification import ClassificationTask
from geoattn.models.segmentation import SegmentationTask
from geoattn.train import TrainConfig, evaluate, fit

SMALL = {
    "channels": (8, 16),
    "depths": (1, 1),
    "heads": (2, 2),
    "strides": (2,),
    "decoder_channels": (8,),
    "decoder_depths": (1,),
    "decoder_heads": (2,),
    "patch_size": 64,
    "drop_path": 0.0,
}


class Clouds(list):
    """Floors and walls, or whole clouds of one or the other."""

    names = ("floor", "wall")

    def __init__(self, count, labelled):
        self.labelled = labelled
        for seed in range(count):
            generator = torch.Generator().manual_seed(seed)
            flat = torch.rand(400, 3, generator=generator)
            wall = (torch.arange(400) < 200).long() if labelled == "vertex" else torch.full((400,), seed % 2)
            pos = torch.where(
                wall[:, None] == 1, flat * torch.tensor([0.05, 1.0, 1.0]), flat * torch.tensor([1, 1, 0.05])
            )
            y = wall if labelled == "vertex" else wall[:1]
            self.append(Data(pos=pos, color=torch.rand(400, 3, generator=generator), y=y, name=f"cloud{seed}"))


@pytest.mark.parametrize(("task", "labelled"), [(SegmentationTask, "vertex"), (ClassificationTask, "whole")])
def test_clouds_are_learned(task, labelled, tmp_path):
    torch.manual_seed(0)
    samples, task = Clouds(8, labelled), task()
    options = {key: value for key, value in SMALL.items() if labelled == "vertex" or "decoder" not in key}
    network = task.model(samples, "point_transformer_v3", grid_size=0.1, **options)
    assert network.config.features == ("pos", "color")
    assert network.config.labelled == labelled
    fit(task, network, samples, tmp_path, TrainConfig(epochs=6, batch_size=4, lr=1e-2, workers=0))
    figures = evaluate(task, network, Clouds(12, labelled)[8:], workers=0)
    assert figures["accuracy"] > 0.8


def test_all_points_are_measured_and_variants_differ():
    samples, task = Clouds(2, "vertex"), SegmentationTask(crop=50, attribute_dropout=1.0)
    network = task.model(samples, **SMALL, grid_size=0.2)
    prepare = task.prepare(network)
    whole = prepare(samples[0], None)
    assert torch.equal(whole.point_y, samples[0].y)
    variants = [prepare(samples[0], torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    assert [variant.pos.size(0) for variant in variants] == [50, 50]
    assert not torch.equal(variants[0].pos, variants[1].pos)
    assert not variants[0].x[:, 3:].any()  # colors are left out
    assert whole.x[:, 3:].any()
    metrics = task.metrics(network)
    task.measure(metrics, network.eval(), Batch.from_data_list([whole, prepare(samples[1], None)]))
    assert int(metrics["confusion"].compute().sum()) == 800


def test_each_gets_a_network_that_reads_it():
    samples = Clouds(2, "vertex")
    with pytest.raises(ValueError, match=r"are point clouds, and surface_transformer reads meshes; choose .*--network"):
        SegmentationTask().model(samples, "surface_transformer")
    assert SegmentationTask().model(samples).name == "point_transformer_v3"
    assert SegmentationTask().adapted(samples).copies is None
    bodies = load_dataset("bodies", samples=2)
    assert SegmentationTask().model(bodies).name == "surface_transformer"
    assert SegmentationTask().adapted(bodies).copies == 4
    with pytest.raises(ValueError, match="labels for each face, and point_transformer_v3 labels points"):
        SegmentationTask().model(bodies, "point_transformer_v3")


def test_a_loss_of_ignored_labels_is_zero():
    samples, task = Clouds(1, "vertex"), SegmentationTask()
    network = create_model("point_transformer_v3", names=Clouds.names, **SMALL, grid_size=0.2)
    sample = network.input_transform()(samples[0])
    sample.y = torch.full_like(sample.y, -1)
    assert float(task.loss(network, sample).detach()) == 0
    sample.y[0] = 1
    assert math.isfinite(float(task.loss(network, sample).detach()))


def test_parts_are_measured_by_the_category_of_their_object():
    samples, task = Clouds(2, "vertex"), SegmentationTask()
    samples.parts_of_category = ((0,), (0, 1))
    for i, sample in enumerate(samples):
        sample.category = torch.tensor([i])
        sample.y = sample.y * i
    network = task.model(samples, **SMALL, grid_size=0.1)
    assert network.config.categories == 2
    figures = evaluate(task, network, samples, workers=0)
    assert {"accuracy", "mean_iou", "confusion", "instance_iou", "class_iou"} == set(figures)
    # All points of the first object are of its only part.
    assert float(figures["instance_iou"]) >= 0.5
