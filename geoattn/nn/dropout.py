"""Dropout of features that may be sparse."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def dropout(x: Tensor, p: float = 0.5, training: bool = True) -> Tensor:
    """`torch.nn.functional.dropout` that takes sparse CSR matrices as well.

    What is not stored is 0 and stays so: only what is stored is drawn for, which for the words of documents takes a
    hundredth of the time.

    Args:
        x: ``[N, C]``, sparse CSR, or any dense tensor.
        p: How much is set to 0.
        training: Whether to do anything.
    """
    if x.layout != torch.sparse_csr:
        return F.dropout(x, p, training)
    return torch.sparse_csr_tensor(x.crow_indices(), x.col_indices(), F.dropout(x.values(), p, training), x.shape)
