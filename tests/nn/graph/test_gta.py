"""Geometric transform attention against its formula written out, and what it does not depend on."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck, gradgradcheck

from geoattn import Neighbors, Windows
from geoattn.geometry import wigner_d
from geoattn.nn.graph import GTARepresentation, GTATransforms, GTAttention, gta_attend
from geoattn.ops import knn
from geoattn.patterns import as_neighbors

ALL = GTARepresentation(triv=1, se3=8, so3=8, so2=4, t2=3, se2=6, max_frequency=0.5)
POINTS = GTARepresentation(triv=1, se3=6, so3=8, so2=4, se2=4, max_frequency=0.5, euclidean=True)


def wave(*shape, seed=0.0):
    """Numbers that are the same everywhere."""
    return torch.sin(1.7 * torch.arange(math.prod(shape), dtype=torch.float64) + seed).view(shape)


def rotations(count, seed=1.0):
    return torch.from_numpy(Rotation.from_rotvec(2 * wave(count, 3, seed=seed).numpy()).as_matrix())


def homogeneous(rotation, translation):
    matrix = torch.eye(translation.size(-1) + 1, dtype=translation.dtype).repeat(len(translation), 1, 1)
    matrix[:, :-1, :-1], matrix[:, :-1, -1] = rotation, translation
    return matrix


def poses(count):
    return homogeneous(rotations(count), wave(count, 3, seed=2))


def planar_poses(count, seed=4.0):
    angle = 3 * wave(count, seed=seed)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(-1, 2, 2)
    return homogeneous(turn, wave(count, 2, seed=seed + 1))


def transforms(representation, count):
    return GTATransforms(representation, poses(count), wave(count, 2, seed=6), planar_poses(count))


def tokens(count, representation, heads=2):
    return (wave(count, heads, representation.channels, seed=s) for s in (3, 4, 5))


def matrices(rep, pose, coord, planar):
    """The matrix of every token over all channels of a head, of its definition."""
    made = []
    for p, u, q in zip(pose, coord, planar, strict=True):
        rotation = p[:3, :3]
        blocks = [torch.eye(rep.triv, dtype=p.dtype)]
        blocks += [p] * (rep.se3 // 4)
        degrees = [d[0] for d in wigner_d(rotation[None], rep.so3_degree)]
        blocks += degrees * (rep.so3 // sum(len(d) for d in degrees))
        count = rep.so2 // 4
        for j in range(1, count + 1):
            for axis in range(2):
                angle = 2 * math.pi * rep.max_frequency * (1.0 if rep.shared_frequencies else 2.0 ** (j - count))
                angle = angle * u[axis]
                blocks.append(torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()]).view(2, 2))
        shift = torch.eye(3, dtype=p.dtype)
        shift[2, :2] = u
        blocks += [shift] * (rep.t2 // 3)
        blocks += [q] * (rep.se2 // 3)
        made.append(torch.block_diag(*blocks))
    return torch.stack(made)


@pytest.mark.parametrize("v_transform", [True, False])
@pytest.mark.parametrize(
    "representation", [ALL, replace(ALL, shared_frequencies=True, so2=8), replace(ALL, so3=15, so3_degree=3)]
)
def test_attention_equals_its_relative_formula(representation, v_transform):
    count, heads = 9, 2
    query, key, value = tokens(count, representation)
    # With an edge that is there twice, and a query without keys.
    edge_index = torch.tensor([[0, 3, 3, 5, 8, 2, 1, 4, 6, 7, 0], [1, 1, 1, 2, 0, 3, 4, 5, 6, 7, 7]])
    pattern = as_neighbors(edge_index, count)
    of_tokens = transforms(representation, count)
    out = gta_attend(query, key, value, pattern, of_tokens, of_tokens, v_transform=v_transform)
    rho = matrices(representation, poses(count), wave(count, 2, seed=6), planar_poses(count))
    for i in range(count):
        keys = edge_index[0, edge_index[1] == i]
        relative = rho[i].inverse() @ rho[keys]
        for h in range(heads):
            moved = (relative @ key[keys, h].unsqueeze(-1)).squeeze(-1)
            weight = (moved @ query[i, h] / math.sqrt(representation.channels)).softmax(0)
            seen = (relative @ value[keys, h].unsqueeze(-1)).squeeze(-1) if v_transform else value[keys, h]
            torch.testing.assert_close(out[i, h], weight @ seen, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("v_transform", [True, False])
def test_euclidean_attention_equals_its_relative_formula(v_transform):
    count, rep = 8, POINTS
    query, key, value = tokens(count, rep)
    edge_index = torch.tensor([[0, 3, 5, 5, 7, 2, 1, 4, 6, 7], [1, 1, 1, 2, 0, 3, 4, 5, 6, 6]])  # none of 7
    of_tokens = transforms(rep, count)
    out = gta_attend(query, key, value, as_neighbors(edge_index, count), of_tokens, of_tokens, v_transform=v_transform)

    pose, planar = poses(count), planar_poses(count)
    rest = replace(rep, se3=0, se2=0, euclidean=False)
    rho = matrices(rest, pose, wave(count, 2, seed=6), planar)

    def relative(i, j, x):
        """Token j's channels in the frame of token i."""
        solid, plane = pose[i].inverse() @ pose[j], planar[i].inverse() @ planar[j]
        points, flat = x[1:7].view(2, 3), x[-4:].view(2, 2)
        others = torch.cat([x[:1], x[7:-4]])
        others = rho[i].inverse() @ rho[j] @ others
        points = points @ solid[:3, :3].T + solid[:3, 3]
        flat = flat @ plane[:2, :2].T + plane[:2, 2]
        return torch.cat([others[:1], points.flatten(), others[1:], flat.flatten()])

    for i in range(count):
        keys = edge_index[0, edge_index[1] == i].tolist()
        for h in range(2):
            if not keys:
                assert not out[i, h].any()
                continue
            moved = torch.stack([relative(i, j, key[j, h]) for j in keys])
            score = -0.5 * (query[i, h] - moved).square().sum(1) / math.sqrt(rep.channels)
            seen = torch.stack([relative(i, j, value[j, h]) if v_transform else value[j, h] for j in keys])
            torch.testing.assert_close(out[i, h], score.softmax(0) @ seen, rtol=1e-10, atol=1e-10)


# Of the authors' function multihead_geometric_transform_attention at commit 1dcbd37, on the same numbers: the channels
# of token 2, head 1.
PUBLISHED = [
    (
        GTARepresentation(triv=1, se3=4, so3=8, so2=4, t2=3, max_frequency=0.5),
        [-0.576341, 0.724842, 0.677156, -0.717127, -0.181776, 0.705438, 0.283414, -0.888022, 0.192014, 0.832857]
        + [-0.360813, -0.526136, 0.644212, 0.463713, -0.666929, -0.333944, 0.864557, 0.088731, -0.865568, 0.357276],
    ),
    (
        GTARepresentation(triv=1, se3=3, so3=8, so2=4, max_frequency=0.5, euclidean=True),
        [0.238466, -0.077358, -0.16347, 0.49073, 0.036114, -1.004007, 0.149792, 0.280372, -0.671876, -0.47824]
        + [0.300757, 0.29448, -0.631316, -0.228328, 0.368423, 0.067388],
    ),
    (
        GTARepresentation(triv=2, se3=8, t2=6),
        [0.374071, -0.408603, -0.267105, 0.979163, -0.08711, -0.515394, -0.07533, 0.844013, -0.371723, -0.487561]
        + [0.246476, 0.424047, -0.081897, -0.332374, 0.441397, 0.372631],
    ),
]


@pytest.mark.parametrize(("representation", "expected"), PUBLISHED)
def test_attention_equals_the_published_code(representation, expected):
    query, key, value = tokens(3, representation)
    of_tokens = GTATransforms(representation, poses(3), wave(3, 2, seed=6)).scaled(torch.tensor(0.8))
    out = gta_attend(query, key, value, Windows(torch.tensor([0, 3])), of_tokens, of_tokens)
    torch.testing.assert_close(out[2, 1], torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6)


def cloud(count=12):
    pose = poses(count)
    rowptr, col = knn(pose[:, :3, 3], 4)
    return Neighbors(rowptr, col, count)


def layer(representation, **settings):
    torch.manual_seed(0)
    made = GTAttention(10, heads=2, representation=representation, translation_scale=0.7, **settings).double()
    torch.nn.init.normal_(made.out.bias)
    return made


@pytest.mark.parametrize("representation", [ALL, POINTS])
def test_layer_ignores_where_the_world_lies(representation):
    count, attention = 12, layer(representation)
    x, pose, coord, planar = wave(count, 10), poses(count), wave(count, 2, seed=6), planar_poses(count)
    out = attention(x, cloud(), GTATransforms(representation, pose, coord, planar))
    move = homogeneous(rotations(1, seed=9.0), torch.tensor([[3.0, -2.0, 5.0]], dtype=torch.float64))
    glide = homogeneous(planar_poses(1, seed=9.0)[:, :2, :2], torch.tensor([[-4.0, 1.0]], dtype=torch.float64))
    moved = GTATransforms(representation, move @ pose, coord + torch.tensor([0.4, -1.3]), glide @ planar)
    torch.testing.assert_close(attention(x, cloud(), moved), out, rtol=1e-9, atol=1e-9)
    # But not where one token lies.
    for part in ("pose", "coord", "planar_pose"):
        given = {"pose": pose.clone(), "coord": coord.clone(), "planar_pose": planar.clone()}
        given[part][0, 0, ...] = -given[part][0, 0, ...]
        assert (attention(x, cloud(), GTATransforms(representation, **given)) - out).abs().max() > 1e-3


def test_layer_is_equivariant_to_the_order_of_tokens():
    attention, x = layer(ALL), wave(12, 10)
    edge_index = torch.stack([cloud().col, cloud().row])
    pose, coord, planar = poses(12), wave(12, 2, seed=6), planar_poses(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    out = attention(x, edge_index, GTATransforms(ALL, pose, coord, planar))
    shuffled = attention(
        x[order], order.argsort()[edge_index], GTATransforms(ALL, pose[order], coord[order], planar[order])
    )
    torch.testing.assert_close(shuffled, out[order])


@pytest.mark.parametrize("representation", [ALL, POINTS])
def test_windows_are_samples_by_themselves(representation):
    attention, x = layer(representation), wave(9, 10)
    windows = Windows(torch.tensor([0, 4, 9]))
    together = attention(x, windows, transforms(representation, 9))
    torch.testing.assert_close(attention(x, windows.to_neighbors(), transforms(representation, 9)), together)
    for begin, end in ((0, 4), (4, 9)):
        run = slice(begin, end)
        of_run = GTATransforms(representation, poses(9)[run], wave(9, 2, seed=6)[run], planar_poses(9)[run])
        alone = attention(x[run], Windows(torch.tensor([0, end - begin])), of_run)
        torch.testing.assert_close(alone, together[run])


def test_sources_and_targets():
    """Queries read from tokens of other features, number and poses; on the graph of both they are the same."""
    attention = layer(ALL)
    x, of_all = wave(9, 10), transforms(ALL, 9)
    edge_index = torch.tensor([[0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 2, 2]])
    parts = [
        GTATransforms(ALL, poses(9)[run], wave(9, 2, seed=6)[run], planar_poses(9)[run])
        for run in (slice(0, 6), slice(6, 9))
    ]
    out = attention((x[:6], x[6:]), edge_index, tuple(parts))
    joined = attention(x, edge_index + torch.tensor([[0], [6]]), of_all)
    torch.testing.assert_close(out, joined[6:])

    other = GTAttention((4, 10), 2, ALL, out_channels=7).double()
    assert other((wave(6, 4), x[6:]), edge_index, tuple(parts)).shape == (3, 7)


@pytest.mark.parametrize("representation", [ALL, POINTS])
@pytest.mark.parametrize("dense", [True, False])
def test_queries_without_keys_get_the_bias(representation, dense):
    attention = layer(representation)
    pattern = Windows(torch.tensor([0, 2, 5]), torch.tensor([0, 0, 5]))
    out = attention(wave(5, 10), pattern if dense else pattern.to_neighbors(), transforms(representation, 5))
    torch.testing.assert_close(out[:2], attention.out.bias.expand(2, 10), rtol=0, atol=0)
    assert out[2:].isfinite().all()


def test_translations_have_a_learned_scale():
    rep = GTARepresentation(se3=8, se2=6)
    attention, x = layer(rep), wave(6, 10)
    scaled, flat = poses(6), planar_poses(6)
    scaled[:, :3, 3] *= 0.7
    flat[:, :2, 2] *= 0.7
    plain = GTATransforms(rep, scaled, planar_pose=flat)
    out = attention(x, Windows(torch.tensor([0, 6])), transforms(rep, 6))
    out.sum().backward()
    assert attention.translation_scale.grad.abs() > 1e-3
    attention.translation_scale.data.fill_(1.0)
    torch.testing.assert_close(attention(x, Windows(torch.tensor([0, 6])), plain), out)
    assert layer(GTARepresentation(triv=4, so3=8)).translation_scale is None


@pytest.mark.parametrize("representation", [ALL, POINTS])
def test_gradients(representation):
    attention = layer(representation)
    pattern = as_neighbors(torch.tensor([[0, 1, 2, 0], [1, 1, 0, 0]]), 3)  # nothing reaches token 2
    given = [wave(3, 10), poses(3), wave(3, 2, seed=6), planar_poses(3), torch.tensor([0.7]).double()]
    given = [x.clone().requires_grad_() for x in given]

    def run(x, pose, coord, planar, scale):
        of_tokens = GTATransforms(representation, pose, coord, planar)
        return torch.func.functional_call(attention, {"translation_scale": scale}, (x, pattern, of_tokens))

    assert gradcheck(run, given)
    assert gradgradcheck(lambda x, pose: run(x, pose, *given[2:]).square().sum(), given[:2], fast_mode=True)


def test_autocast_keeps_far_poses():
    rep = GTARepresentation(se3=8, so2=8)
    torch.manual_seed(0)
    attention = GTAttention(10, 2, rep, translation_scale=1.0)
    pose = poses(12).float()
    pose[:, :3, 3] += 300.0
    of_tokens, x = GTATransforms(rep, pose, wave(12, 2).float()), wave(12, 10).float()
    exact = attention(x, cloud(), of_tokens)
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(x, cloud(), of_tokens)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)


def test_state_dict_and_reset():
    first, second = layer(ALL), GTAttention(10, 2, ALL).double()
    second.load_state_dict(first.state_dict())
    x, of_tokens = wave(12, 10), transforms(ALL, 12)
    torch.testing.assert_close(second(x, cloud(), of_tokens), first(x, cloud(), of_tokens), rtol=0, atol=0)
    first.reset_parameters()
    assert not first.out.bias.any()
    assert first.translation_scale.item() == pytest.approx(0.7)
    assert first.query.weight.abs().max() <= 2 / math.sqrt(10)
    assert (first.query.weight - second.query.weight).abs().max() > 0.01


def test_trivial_channels_are_plain_attention():
    rep = GTARepresentation(triv=6)
    query, key, value = tokens(5, rep)
    of_tokens, whole = GTATransforms(rep), Windows(torch.tensor([0, 5]))
    expected = torch.nn.functional.scaled_dot_product_attention(*(t.transpose(0, 1) for t in (query, key, value)))
    torch.testing.assert_close(gta_attend(query, key, value, whole, of_tokens, of_tokens), expected.transpose(0, 1))


def test_dropout_in_training_only():
    attention, x, of_tokens = layer(ALL, dropout=0.5), wave(12, 10), transforms(ALL, 12)
    assert (attention(x, cloud(), of_tokens) == 0).any()
    assert not (attention.eval()(x, cloud(), of_tokens) == 0).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"se3": 6}, "se3 must be a multiple of 4 channels, got 6"),
        ({"se3": 4, "euclidean": True}, "se3 must be a multiple of 3 channels, got 4"),
        ({"so3": 3}, "so3 must be a multiple of 8"),
        ({"so2": 4, "axes": 3}, "so2 must be a multiple of 6"),
        ({"triv": -1}, "triv must be"),
        ({}, "must have channels"),
        ({"so3": 8, "so3_degree": 0}, "so3_degree must be at least 1, got 0"),
        ({"t2": 3, "axes": 3}, "axes=3"),
        ({"t2": 3, "euclidean": True}, "no t2 with euclidean"),
    ],
)
def test_wrong_representations(settings, message):
    with pytest.raises(ValueError, match=message):
        GTARepresentation(**settings)


def test_wrong_tokens():
    rep = GTARepresentation(se3=4, so2=4)
    pose, coord = poses(5), wave(5, 2)
    with pytest.raises(ValueError, match="need pose, got None"):
        GTATransforms(rep, coord=coord)
    with pytest.raises(ValueError, match=r"expected pose \[N, 4, 4\], got \(5, 3, 3\)"):
        GTATransforms(rep, pose[:, :3, :3], coord)
    with pytest.raises(ValueError, match=r"\(5, 4, 4\).*\(4, 2\)"):
        GTATransforms(rep, pose, coord[:4])
    with pytest.raises(ValueError, match="one type"):
        GTATransforms(rep, pose, coord.float())

    of_tokens = GTATransforms(rep, pose, coord)
    attention = layer(rep)
    whole = Windows(torch.tensor([0, 5]))
    with pytest.raises(ValueError, match="the layer's representation"):
        attention(wave(5, 10), whole, GTATransforms(GTARepresentation(se3=8), pose))
    with pytest.raises(ValueError, match=r"expected query \[5, H, 8\], got \(6, 2, 8\)"):
        attention(wave(6, 10), Windows(torch.tensor([0, 6])), of_tokens)
    with pytest.raises(ValueError, match="as precise"):
        attention(wave(5, 10), whole, GTATransforms(rep, pose.float(), coord.float()))
    query, key, value = tokens(5, rep)
    with pytest.raises(ValueError, match="one representation"):
        gta_attend(query, key, value, whole, of_tokens, GTATransforms(GTARepresentation(triv=8)))
