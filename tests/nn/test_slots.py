"""Slot attention: the public code's numbers, sets of any sizes, and what MESH is for."""

import pytest
import torch

from geoattn.nn import SlotAttention, slots
from tests.nn.set_numbers import assert_has_numbers, filled, sets_of, waves

# Of slot_attention.py in davzha/MESH at c7e8320, on two sets of five elements, noise and first slots given.
NUMBERS = {
    "softmax": ([-1.630279, -1.288982, 1.895479], 13.512473, 1.860993),
    "sinkhorn": ([-1.629316, -1.289563, 1.894514], 13.510371, 1.887394),
    "mesh": ([-1.629444, -1.278822, 1.889227], 13.510804, 1.931738),
}
every_assignment = pytest.mark.parametrize("assignment", NUMBERS)


def layer_of(assignment):
    return filled(SlotAttention(4, 3, 6, 5, assignment))


@pytest.fixture
def given_noise(monkeypatch):
    monkeypatch.setattr(slots, "_randn", lambda like, generator, *shape: waves(*shape, start=3).to(like))


@every_assignment
def test_numbers_are_those_of_the_public_code(assignment, given_noise):
    x = waves(10, 4, start=7).requires_grad_()
    out = layer_of(assignment)(x, sets_of(5, 5), waves(2, 3, 6, start=2))
    assert_has_numbers(out, x, NUMBERS[assignment])


@every_assignment
def test_sets_of_a_batch_do_not_see_each_other(assignment, monkeypatch):
    monkeypatch.setattr(slots, "_randn", lambda like, generator, *shape: torch.ones(shape).to(like))
    layer, sizes = layer_of(assignment).double(), (4, 1, 7)
    x, first = torch.randn(12, 4).double(), torch.randn(3, 3, 6).double()
    alone = [layer(part, sets_of(len(part)), first[i : i + 1]) for i, part in enumerate(x.split(sizes))]
    torch.testing.assert_close(layer(x, sets_of(*sizes), first), torch.cat(alone), rtol=1e-8, atol=1e-9)


@every_assignment
def test_the_order_of_elements_and_slots_does_not_matter(assignment, monkeypatch):
    monkeypatch.setattr(slots, "_randn", lambda like, generator, *shape: torch.ones(shape).to(like))
    layer, sets = layer_of(assignment).double(), sets_of(6)
    x, first = torch.randn(6, 4).double(), torch.randn(1, 3, 6).double()
    expected = layer(x, sets, first)
    torch.testing.assert_close(layer(x.flip(0), sets, first), expected, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(layer(x, sets, first.flip(1)), expected.flip(1), rtol=1e-8, atol=1e-9)


@every_assignment
def test_it_is_the_same_in_every_mode_and_repeats_with_its_generator(assignment):
    layer, x, sets = layer_of(assignment), torch.randn(9, 4), sets_of(5, 4)

    def run():
        return layer(x, sets, generator=torch.Generator().manual_seed(0))

    expected = run()
    assert torch.equal(run(), expected)
    with torch.no_grad():
        assert torch.equal(run(), expected)
        assert not run().requires_grad
    with torch.inference_mode():
        assert torch.equal(run(), expected)


@torch.no_grad()
def plan_of(mesh_steps):
    """Of random costs of four sets."""
    make = torch.Generator().manual_seed(0)
    layer = SlotAttention(4, 3, mesh_steps=max(mesh_steps, 1))
    of_set = torch.arange(4).repeat_interleave(8)
    marginals = slots._Marginals(torch.full((32,), 3 / 8), torch.ones(4, 3), of_set)
    cost, potential = torch.rand(32, 3, generator=make), None
    if mesh_steps:
        cost, potential = layer._sharpen(cost, marginals)
    return marginals.plan(cost, 50, potential)[0]


def test_plans_have_their_marginals_and_mesh_makes_them_sharper():
    for steps in (0, 4):
        plan = plan_of(steps)
        torch.testing.assert_close(plan.sum(1), torch.full((32,), 3 / 8), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(plan.view(4, 8, 3).sum(1), torch.ones(4, 3), rtol=1e-3, atol=1e-3)
    least = 32 * torch.special.entr(torch.tensor(3 / 8))  # every element in one slot
    above, above_without = (torch.special.entr(plan_of(steps)).sum() - least for steps in (4, 0))
    assert 0 < above < 0.3 * above_without


@pytest.mark.parametrize("assignment", ["softmax", "sinkhorn"])
def test_gradients(assignment):
    layer, sets = layer_of(assignment).double(), sets_of(2, 1)
    x, first = torch.randn(3, 4).double().requires_grad_(), torch.randn(2, 3, 6).double()
    assert torch.autograd.gradcheck(lambda x: layer(x, sets, first), x)
    if assignment == "softmax":
        assert torch.autograd.gradgradcheck(lambda x: layer(x, sets, first), x)
    else:
        with pytest.raises(NotImplementedError, match="cdist"):
            torch.autograd.gradgradcheck(lambda x: layer(x, sets, first), x)


def test_an_assignment_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match='assignment must be "softmax", "sinkhorn" or "mesh", got \'hard\''):
        SlotAttention(4, 3, assignment="hard")


@every_assignment
def test_half_precision_is_finite_and_near(assignment, given_noise):
    layer, x, first = layer_of(assignment), waves(10, 4, start=7), waves(2, 3, 6, start=2)
    expected = layer(x, sets_of(5, 5), first)
    out = layer.half()(x.half(), sets_of(5, 5), first.half())
    torch.testing.assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)


def test_shapes_that_do_not_fit_are_refused():
    layer = layer_of("softmax")
    with pytest.raises(ValueError, match=r"expected x \[10, C\] for Windows.*got \(9, 4\)"):
        layer(torch.rand(9, 4), sets_of(5, 5))
    with pytest.raises(ValueError, match=r"expected slots \[2, S, 6\], got \(1, 3, 6\)"):
        layer(torch.rand(10, 4), sets_of(5, 5), torch.rand(1, 3, 6))
