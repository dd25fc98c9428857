"""One evaluation for all tasks: what it leaves as it was, and what does not matter to it."""

import pytest
import torch
from torch_geometric.data import Data
from trainee import Clouds, LongAlong, build

from geoattn.models import create_model
from geoattn.models.segmentation import SegmentationTask
from geoattn.train import evaluate, find_device, make_fabric


def test_modes_are_given_back_module_by_module():
    model = build()
    model.train()
    model.norm.eval()  # as where a part is frozen
    before = {name: module.training for name, module in model.named_modules()}
    first = evaluate(LongAlong(), model, Clouds(9, 0))
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(first["accuracy"], evaluate(LongAlong(), model.eval(), Clouds(9, 0))["accuracy"])
    assert not model.training


def test_modes_are_given_back_after_an_error():
    class Failing(LongAlong):
        def measure(self, metrics, model, batch):
            assert not model.training
            raise RuntimeError("no")

    model = build().train()
    with pytest.raises(RuntimeError, match="no"):
        evaluate(Failing(), model, Clouds(9, 0))
    assert model.training


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_the_size_of_batches_does_not_matter(batch_size):
    expected = evaluate(LongAlong(), build(), Clouds(9, 0))
    assert torch.equal(
        evaluate(LongAlong(), build(), Clouds(9, 0), batch_size=batch_size)["accuracy"], expected["accuracy"]
    )


def test_no_gradient_is_recorded():
    class Watching(LongAlong):
        def measure(self, metrics, model, batch):
            assert not model(batch).requires_grad
            super().measure(metrics, model, batch)

    evaluate(Watching(), build(), Clouds(3, 0))
    assert torch.is_grad_enabled()


def test_what_cannot_be_measured_is_said():
    with pytest.raises(ValueError, match="there are no samples to measure on"):
        evaluate(LongAlong(), build(), Clouds(0, 0))
    model = create_model("surface_transformer", names=("a", "b"), channels=8, blocks=1, latents=2)
    face = torch.tensor([[0, 1, 2], [1, 2, 3]]).T
    for y, message in (
        (None, "sample 0.* has no labels: expected y, integers from 0 to 1"),
        (torch.tensor([0, 2]), r"sample 0.*has label 2; expected 0 to 1, or -1 \(ignored\)"),
        (torch.tensor([0.0, 1.0]), r"sample 0.*has labels y of torch.float32 \[2\]; expected integers"),
        (torch.tensor([0, 1, 0]), r"sample 0.*y has 3 labels; expected 1, or one per face: 2"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(SegmentationTask(), model, [Data(pos=torch.rand(4, 3), face=face, y=y)])


def test_ignored_labels_count_neither_in_the_loss_nor_in_the_metrics():
    model = create_model("surface_transformer", names=("a", "b"), channels=8, blocks=1, latents=2).eval()
    mesh = Data(pos=torch.rand(5, 3), face=torch.tensor([[0, 1, 2], [1, 2, 3], [2, 3, 4]]).T)
    task = SegmentationTask()
    prepare = task.prepare(model)

    def loss(*labels):
        return task.loss(model, prepare(Data(pos=mesh.pos, face=mesh.face, y=torch.tensor(labels)), None))

    torch.testing.assert_close(2 * loss(0, 1, -1), loss(0, -1, -1) + loss(-1, 1, -1))
    nothing = loss(-1, -1, -1)
    assert nothing == 0
    nothing.backward()
    mesh.y = torch.tensor([0, 1, -1])
    assert evaluate(task, model, [mesh])["confusion"].sum() == 2


def test_balanced_weights_follow_from_the_training_samples():
    meshes = Samples([Data(y=torch.tensor([0, 0, 0, 1, -1]))])
    task = SegmentationTask(class_weights="balanced").adapted(meshes)
    assert task.weights == pytest.approx((0.5, 1.5))
    assert SegmentationTask().adapted(meshes).weights == ()


class Samples(list):
    names = ("a", "b")
    labelled = "face"


def test_devices_and_precisions_by_name():
    assert find_device("cpu").type == "cpu"
    assert make_fabric("cpu", "bfloat16")._precision.precision == "bf16-mixed"
    for device, message in (("abacus", "device 'abacus' is unknown"), ("mps", "not supported"), ("cuda:99", "finds")):
        with pytest.raises(ValueError, match=message):
            find_device(device)
    with pytest.raises(ValueError, match="precision 'half' is unknown"):
        make_fabric("cpu", "half")
