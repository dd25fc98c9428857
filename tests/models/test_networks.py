"""Every network of the registry: forward, backward, checkpoints, batches, half types, memory."""

import json
from dataclasses import asdict, fields

import pytest
import torch
import trimesh
from torch_geometric.data import Batch, Data

import geoattn
from geoattn.data import RandomDeform
from geoattn.models import (
    Network,
    create_model,
    list_models,
    list_tasks,
    load_model,
    load_task,
    model_config,
    register_model,
)
from geoattn.models.network import find_checkpoint


def mesh(seed):
    ball = trimesh.creation.icosphere(2)
    data = Data(pos=torch.tensor(ball.vertices).float(), face=torch.tensor(ball.faces.T.copy()))
    return RandomDeform(torch.Generator().manual_seed(seed))(data)


def cloud(seed):
    generator = torch.Generator().manual_seed(seed)
    pos = torch.rand(300 + 50 * seed, 3, generator=generator) * torch.tensor([2.0, 1.5, 0.5])
    return Data(pos=pos, color=torch.rand(pos.shape, generator=generator))


# A small config of each network, samples for it, and how much of what a layer keeps for backward grows with the input:
# bytes for each element, measured, and rounded up by a quarter.
SURFACE = {"names": ("a", "b", "c"), "channels": 16, "heads": 2, "blocks": 2, "latents": 4}
V3 = {
    "names": ("a", "b", "c"),
    "features": ("pos", "color"),
    "grid_size": 0.1,
    "channels": (16, 32, 32),
    "depths": (1, 1, 1),
    "heads": (2, 2, 4),
    "strides": (2, 2),
    "decoder_channels": (16, 16),
    "decoder_depths": (1, 1),
    "decoder_heads": (2, 2),
    "patch_size": 32,
    "relative_positions": True,
}
ERWIN = {
    "names": ("a", "b", "c"), "channels": (8, 16), "strides": (2,), "ball_sizes": (32, 32), "encoder_depths": (2, 1),
    "encoder_heads": (2, 2), "decoder_depths": (1,), "decoder_heads": (2,), "message_steps": 1, "rotate": 45,
}  # fmt: skip
V1 = {
    "names": ("a", "b", "c"), "features": ("pos", "color"), "channels": (8, 16, 32), "blocks": (1, 1, 1),
    "neighbors": (4, 6, 6), "share": 4,
}  # fmt: skip
POINTNET2 = {
    "names": ("a", "b", "c"), "features": ("pos", "color"), "unit_sphere": True, "centers": (60, 15), "width": 0.2,
    "neighbors": 0.2,
}  # fmt: skip
WHOLE = {"names": ("a", "b", "c"), "labelled": "whole", "features": ("pos", "color"), "channels": 16, "heads": 2}
NETWORKS = {
    "erwin": (ERWIN, cloud),
    "perceiver": ({**WHOLE, "latents": 6, "layers": 2, "bands": 4, "max_frequency": 8.0}, cloud),
    "point_transformer": (V1, cloud),
    "point_transformer_v3": (V3, cloud),
    "pointnet2_msg": (POINTNET2, cloud),
    "pointnet2_ssg": (POINTNET2, cloud),
    "set_transformer": ({**WHOLE, "inducing_points": 4, "norm": True}, cloud),
    "surface_classifier": (SURFACE, mesh),
    "surface_transformer": (SURFACE, mesh),
}
MESHES = [name for name in list_models() if NETWORKS[name][1] is mesh]
every_network = pytest.mark.parametrize("name", list_models())


def build(name):
    torch.manual_seed(0)
    model = create_model(name, **NETWORKS[name][0])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # zeros at the start would hide faults
    return model


def inputs(model, count):
    transform, make = model.input_transform(), NETWORKS[model.name][1]
    return [transform(make(seed)) for seed in range(count)]


def test_every_network_is_walked():
    assert sorted(NETWORKS) == list_models()
    assert {task for name in list_models() for task in type(build(name)).tasks} <= set(list_tasks())


@every_network
def test_forward_and_backward(name):
    model = build(name).train()
    out = model(Batch.from_data_list(inputs(model, 2)))
    assert out.isfinite().all()
    out.square().sum().backward()
    unused = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A shift of all keys' scores changes no softmax.
    assert [key for key in unused if not key.endswith("bias")] == []


@every_network
def test_a_batch_is_its_samples_side_by_side(name):
    model = build(name).eval()
    samples = inputs(model, 3)
    with torch.no_grad():
        together = model(Batch.from_data_list(samples))
        alone = torch.cat([model(sample) for sample in samples])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@every_network
def test_a_checkpoint_comes_back_the_same(name, tmp_path, capsys):
    model = build(name).eval()
    model.save_pretrained(tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert type(again) is type(model)
    assert again.config == model.config
    assert not again.training
    [sample] = inputs(model, 1)
    with torch.no_grad():
        assert torch.equal(again(sample), model(sample))
    assert type(model).from_pretrained(tmp_path / "model").config == model.config
    assert capsys.readouterr().out == ""
    written = json.loads((tmp_path / "model" / "config.json").read_text())
    assert written == json.loads(json.dumps({"network": name, **asdict(model.config)}))


@every_network
def test_bfloat16_is_close_to_float32(name):
    model = build(name).eval()
    [sample] = inputs(model, 1)
    with torch.no_grad():
        expected = model(sample)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(sample).float()
    assert found.isfinite().all()
    # Eight bits of mantissa, through a dozen layers.
    assert (found - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("name", MESHES)
def test_what_is_kept_for_backward_grows_with_elements_not_with_edges(name):
    def kept(hops):
        model, total = build(name).train(), {}
        transform = model.input_transform()
        transform.hops = hops
        sample = transform(NETWORKS[name][1](0))
        edges = sample.neighbor_index.size(1)

        def pack(tensor):
            total[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(sample)
        return edges, sum(total.values())

    (few, small), (many, large) = kept(1), kept(3)
    heads_and_float = 2 * 4
    assert many > 3 * few
    # The pattern itself is kept: row, column and their transposes, int64; no score of 2 blocks with 2 heads beside it.
    assert (large - small) / (many - few) < 5 * 8 + heads_and_float


def test_what_is_wrong_with_a_name_or_an_option_is_said():
    with pytest.raises(ValueError, match=r"network 'unet' is unknown; known are .*surface_transformer"):
        create_model("unet")
    with pytest.raises(ValueError, match="surface_transformer has no option width; it has names, in_channels"):
        create_model("surface_transformer", names=("a", "b"), width=3)
    with pytest.raises(ValueError, match=r"surface_transformer: .*missing 1 required.*'names'"):
        create_model("surface_transformer")
    assert "heads" in {field.name for field in fields(model_config("surface_transformer"))}


@pytest.fixture
def no_network(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("socket.socket.connect", fail)
    monkeypatch.setattr("socket.getaddrinfo", fail)


@pytest.mark.usefixtures("no_network")
def test_a_missing_folder_is_said_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"runs/human: no such folder; .* is named hf-hub:runs/human"):
        load_model("runs/human")
    with pytest.raises(FileNotFoundError, match=r"nothing: no such folder$"):
        geoattn.models.segmentation.SurfaceTransformer.from_pretrained("nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no checkpoint there: no config\.json"):
        load_model("empty")
    with pytest.raises(FileNotFoundError, match="no checkpoint there"):
        load_task("empty")
    (tmp_path / "empty" / "config.json").write_text('{"network": "unet"}')
    with pytest.raises(ValueError, match=r"empty: config.json names the network 'unet'"):
        load_model("empty")
    (tmp_path / "empty" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json: Expecting"):
        load_model("empty")


def test_a_run_is_as_good_as_its_best_checkpoint(tmp_path):
    model = build("surface_transformer")
    model.save_pretrained(tmp_path / "run" / "last")
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / "last"
    model.save_pretrained(tmp_path / "run" / "best")
    assert find_checkpoint(tmp_path / "run") == tmp_path / "run" / "best"
    assert isinstance(load_model(tmp_path / "run"), Network)


def test_a_damaged_checkpoint_is_named(tmp_path):
    model = build("surface_transformer")
    model.save_pretrained(tmp_path)
    content = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged, or does not belong to the config\.json"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "channels": 32}))
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged, or .*size mismatch"):
        load_model(tmp_path)


def test_names_are_not_taken_by_others():
    with pytest.raises(ValueError, match="'surface_transformer' is the name of SurfaceTransformer already"):
        register_model("surface_transformer", dict)(type("Other", (Network,), {}))
    registered = type(build("surface_transformer"))
    assert register_model("surface_transformer", model_config("surface_transformer"), "segmentation")(registered)

    class Mine(registered):
        pass

    with pytest.raises(ValueError, match="Mine could not be loaded again: give it a name with register_model"):
        Mine(build("surface_transformer").config).save_pretrained("nowhere")


@pytest.mark.parametrize("names", ["ab", ("a",), ("a", "a")])
def test_classes_have_names_of_their_own(names):
    with pytest.raises(ValueError, match="names must be those of at least 2 different classes"):
        create_model("surface_transformer", names=names)
