"""The blocks of Set Transformer: the public code's numbers, and sets of any sizes that do not see each other."""

from functools import partial

import pytest
import torch
from torch import nn

from geoattn.nn import ISAB, MAB, PMA, SAB, sinkhorn_attend
from tests.nn.set_numbers import assert_has_numbers, filled, sets_of, waves

BLOCKS = {
    "SAB": lambda **settings: SAB(4, 6, 2, ln=True, **settings),
    "ISAB": lambda **settings: ISAB(4, 6, 2, 3, **settings),
    "PMA": lambda **settings: PMA(4, 2, 3, ln=True, **settings),
}
every_block = pytest.mark.parametrize("name", BLOCKS)

# Of modules.py in juho-lee/set_transformer at 73432c6, on two sets of five elements.
NUMBERS = {
    "SAB": ([-0.392677, -0.589264, -0.003858], 4.559097, 0.86026),
    "ISAB": ([-1.287572, 1.434859, 1.222343], 8.973688, 21.645158),
    "PMA": ([-0.539512, 0.762595, 0.498571], 2.707769, 0.728114),
}
# Of ISABSINK in michaelsdr/sinkformers at 045d933, by the number of steps.
NUMBERS_OF_SINKFORMER = {
    1: ([0.507611, 0.594307, 0.790509], 5.050339, 1.584019),
    4: ([0.507211, 0.594306, 0.790522], 5.050342, 1.583442),
    7: ([0.507211, 0.594306, 0.790522], 5.050342, 1.583442),
}


@every_block
def test_numbers_are_those_of_the_public_code(name):
    x = waves(10, 4, start=7).requires_grad_()
    assert_has_numbers(filled(BLOCKS[name]())(x, sets_of(5, 5)), x, NUMBERS[name])


@pytest.mark.parametrize("steps", NUMBERS_OF_SINKFORMER)
def test_numbers_are_those_of_the_public_sinkformer(steps):
    def attention(query, key, value, pattern, scale):  # theirs has weights whose sum over all pairs is one
        return sinkhorn_attend(query, key, value, pattern, steps, scale) / int(pattern.query_ptr[1])

    x = waves(10, 4, start=7).requires_grad_()
    layer = filled(ISAB(4, 6, 2, 3, ln=True, attention=attention))
    assert_has_numbers(layer(x, sets_of(5, 5)), x, NUMBERS_OF_SINKFORMER[steps])


def test_the_public_network_has_as_many_parameters():
    blocks = [ISAB(2, 128, 4, 32), ISAB(128, 128, 4, 32), PMA(128, 4, 4), SAB(128, 128, 4), SAB(128, 128, 4)]
    assert sum(p.numel() for block in (*blocks, nn.Linear(128, 5)) for p in block.parameters()) == 423_301


def test_parameters_have_the_names_of_the_public_code():
    assert set(PMA(4, 2, 3, ln=True).state_dict()) == {
        "S", *(f"mab.{x}.{y}" for x in ("fc_q", "fc_k", "fc_v", "fc_o", "ln0", "ln1") for y in ("weight", "bias")),
    }  # fmt: skip
    assert {name.partition(".")[0] for name in ISAB(4, 6, 2, 3).state_dict()} == {"I", "mab0", "mab1"}


@every_block
@pytest.mark.parametrize("settings", [{}, {"attention": partial(sinkhorn_attend, steps=4)}])
def test_sets_of_a_batch_do_not_see_each_other(name, settings):
    layer, sizes = filled(BLOCKS[name](**settings)).double(), (4, 1, 7)
    x = torch.randn(12, 4).double()
    alone = torch.cat([layer(part, sets_of(len(part))) for part in x.split(sizes)])
    torch.testing.assert_close(layer(x, sets_of(*sizes)), alone, rtol=1e-10, atol=1e-11)


@every_block
def test_the_order_of_elements_does_not_matter(name):
    layer, sets = filled(BLOCKS[name]()).double(), sets_of(4, 3)
    x, order = torch.randn(7, 4).double(), torch.tensor([2, 0, 3, 1, 5, 6, 4])
    expected = layer(x, sets) if name == "PMA" else layer(x, sets)[order]
    torch.testing.assert_close(layer(x[order], sets), expected, rtol=1e-10, atol=1e-11)


@every_block
def test_derivatives(name):
    layer, sets = filled(BLOCKS[name]()).double(), sets_of(2, 1)
    x = torch.randn(3, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: layer(x, sets), x)
    assert torch.autograd.gradgradcheck(lambda x: layer(x, sets), x)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="num_heads must divide the width of the output, got 4 and 6"):
        MAB(4, 4, 6, 4)
    with pytest.raises(ValueError, match="got 0 and 6"):
        MAB(4, 4, 6, 0)


@every_block
def test_a_batch_vector_is_no_sets(name):
    with pytest.raises(TypeError, match=r"expected Windows as sets, got Tensor; make them with Windows.from_batch"):
        BLOCKS[name]()(torch.rand(5, 4), torch.zeros(5).long())
