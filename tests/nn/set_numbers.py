"""What layers on sets are tested with."""

import math

import torch

from geoattn import Windows


def waves(*shape, start=0):
    """Numbers that need no generator."""
    return (0.6 * torch.sin(1.7 * (torch.arange(math.prod(shape)) + start) + 0.3)).view(shape)


def filled(module):
    """With weights that the numbers of the public code were computed with."""
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            parameter.copy_(waves(*parameter.shape, start=i))
    return module


def assert_has_numbers(out, x, numbers):
    """The first outputs, the norm of all, and that of the gradient of their squares."""
    first, norm, norm_of_gradient = numbers
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    found = [*out.detach().flatten()[:3].tolist(), float(out.detach().norm()), float(gradient.norm())]
    torch.testing.assert_close(
        torch.tensor(found), torch.tensor([*first, norm, norm_of_gradient]), rtol=1e-5, atol=1e-5
    )


def sets_of(*sizes):
    return Windows(torch.tensor([0, *sizes]).cumsum(0))
