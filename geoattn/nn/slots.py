"""Slot attention: the elements of a set are divided among a few slots."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from geoattn.ops import segment_logsumexp, segment_mean, segment_softmax, segment_sum
from geoattn.patterns.windows import Windows, check_windows

Assignment = Literal["softmax", "sinkhorn", "mesh"]


class SlotAttention(nn.Module):
    r"""Slots that compete for the elements of a set, again and again, and become what they won.

    In each iteration a weight :math:`T_{is}` says how much of element :math:`i` belongs to slot :math:`s`, a gated
    recurrent unit makes the slot anew from :math:`\sum_i T_{is} v_i`, and a perceptron with a residual follows.

    - ``"softmax"``: slot attention (Locatello et al. 2020, algorithm 1): :math:`T` is the softmax over slots of scaled
      dot products, divided by its sum over elements.
    - ``"sinkhorn"``: :math:`T` is the plan of entropic optimal transport with costs :math:`C_{is} = \|k_i - q_s\|` and
      learned marginals of elements and slots (Zhang et al. 2023, "Unlocking Slot Attention by Changing Optimal
      Transport Costs").
    - ``"mesh"``: that paper's MESH, which makes the plan sharper: before, some steps down the gradient of the plan's
      entropy change :math:`C`. As in the authors' code, the direction of each of these steps is a constant for the
      backward pass.

    Parameters have the names of the authors' code (``SlotAttentionVariant``), and defaults are theirs. Gradients of
    gradients are right with ``"softmax"``; with the others torch raises, which does not have those of distances.

    Args:
        in_channels: Features of an element.
        num_slots: Number of slots ``S``.
        slot_channels: Features of a slot.
        mlp_channels: Width of the perceptrons.
        assignment: How elements are divided among slots.
        iterations: How often.
        sinkhorn_steps: Number of Sinkhorn's iterations, of elements and slots.
        mesh_steps: Number of steps down the gradient of the entropy.
        mesh_lr: Length of such a step.

    Raises:
        ValueError: If ``assignment`` is none of the three.
    """

    def __init__(
        self,
        in_channels: int,
        num_slots: int,
        slot_channels: int = 64,
        mlp_channels: int = 128,
        assignment: Assignment = "mesh",
        iterations: int = 3,
        sinkhorn_steps: int = 5,
        mesh_steps: int = 4,
        mesh_lr: float = 8.0,
    ) -> None:
        super().__init__()
        if assignment not in ("softmax", "sinkhorn", "mesh"):
            raise ValueError(f'assignment must be "softmax", "sinkhorn" or "mesh", got {assignment!r}')
        self.num_slots, self.slot_channels, self.assignment = num_slots, slot_channels, assignment
        self.iterations, self.sinkhorn_steps = iterations, sinkhorn_steps
        self.mesh_steps, self.mesh_lr = mesh_steps, mesh_lr
        self.norm_inputs = nn.LayerNorm(in_channels)
        self.norm_slots = nn.LayerNorm(slot_channels)
        self.norm_mlp = nn.LayerNorm(slot_channels)
        self.project_q = nn.Linear(slot_channels, slot_channels, bias=False)
        self.project_k = nn.Linear(in_channels, slot_channels, bias=False)
        self.project_v = nn.Linear(in_channels, slot_channels, bias=False)
        self.gru = nn.GRUCell(slot_channels, slot_channels)
        self.mlp = nn.Sequential(
            nn.Linear(slot_channels, mlp_channels), nn.ReLU(), nn.Linear(mlp_channels, slot_channels)
        )
        if assignment != "softmax":
            self.mlp_slot_marginals = _marginals(slot_channels, mlp_channels)
            self.mlp_input_marginals = _marginals(in_channels, mlp_channels)
        self.slots_mu = nn.Parameter(torch.empty(1, 1, slot_channels))
        self.slots_log_sigma = nn.Parameter(torch.empty(1, 1, slot_channels))
        nn.init.xavier_uniform_(self.slots_mu)
        nn.init.xavier_uniform_(self.slots_log_sigma)

    def forward(
        self, x: Tensor, sets: Windows, slots: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Divide the elements of each set among its slots.

        Args:
            x: Elements ``[N, in_channels]``.
            sets: A run for each of ``B`` sets, of ``N`` queries.
            slots: What to begin with, ``[B, S, slot_channels]``, such as those of the frame before; default: drawn.
            generator: Draws the slots to begin with, and MESH's noise of 0.001 on the costs; default: torch's.

        Returns:
            ``[B, S, slot_channels]``.

        Raises:
            TypeError: If ``sets`` are no `Windows`.
            ValueError: If shapes do not fit.
        """
        check_windows(sets, "sets", "Windows.from_batch(batch)")
        if x.dim() != 2 or len(x) != sets.num_queries:
            raise ValueError(f"expected x [{sets.num_queries}, C] for {sets}, got {tuple(x.shape)}")
        if slots is not None and slots.shape[:1] != (sets.num_runs,):
            raise ValueError(f"expected slots [{sets.num_runs}, S, {self.slot_channels}], got {tuple(slots.shape)}")
        count, sizes = sets.num_runs, sets.query_ptr.diff()
        of_set = torch.arange(count, device=x.device).repeat_interleave(sizes, output_size=len(x))
        size = sizes.tolist()
        wide = torch.promote_types(x.dtype, torch.float32)  # of plans, whose small numbers half precision does not have
        x = self.norm_inputs(x)
        key, value = self.project_k(x), self.project_v(x)
        if slots is None:
            drawn = _randn(value, generator, count, self.num_slots, self.slot_channels)
            slots = self.slots_mu + self.slots_log_sigma.exp() * drawn
        of_element: Tensor | None = None
        noise: Tensor | None = None
        if self.assignment != "softmax":
            of_element = self.num_slots * segment_softmax(
                self.mlp_input_marginals(x).squeeze(1).to(wide), of_set, num_segments=count
            )
        if self.assignment == "mesh":
            noise = _randn(value, generator, len(x), self.num_slots)
        for _ in range(self.iterations):
            before, slots = slots, self.norm_slots(slots)
            query = self.project_q(slots)
            if of_element is None:
                scale = self.slot_channels**-0.5
                won = scale * torch.cat([k @ q.t() for k, q in zip(key.split(size), query, strict=True)])
                won = won.to(wide).softmax(1) + 1e-8
                weight = won / segment_sum(won, of_set, num_segments=count)[of_set]
            else:
                of_slot = self.num_slots * self.mlp_slot_marginals(slots).squeeze(2).to(wide).softmax(1)
                marginals = _Marginals(of_element, of_slot, of_set)
                cost, potential = (
                    torch.cat(
                        [torch.cdist(k, q) for k, q in zip(key.to(wide).split(size), query.to(wide), strict=True)]
                    ),
                    None,
                )
                if noise is not None:
                    cost, potential = self._sharpen(cost + 0.001 * noise, marginals)
                weight, _ = marginals.plan(cost, self.sinkhorn_steps, potential)
            weight = weight.to(value.dtype)
            update = torch.stack([w.t() @ v for w, v in zip(weight.split(size), value.split(size), strict=True)])
            slots = self.gru(update.flatten(0, 1), before.flatten(0, 1)).view_as(before)
            slots = slots + self.mlp(self.norm_mlp(slots))
        return slots

    def _sharpen(self, cost: Tensor, marginals: _Marginals) -> tuple[Tensor, Tensor]:
        """Costs ``[N, S]`` whose plan has less entropy, and the potential of slots to begin its computation with."""
        learning = torch.is_grad_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            if not learning or not cost.requires_grad:
                cost = cost.detach().clone().requires_grad_()
            if not learning:
                marginals = marginals.detached()
            potential = None
            for _ in range(self.mesh_steps):
                plan, potential = marginals.plan(cost, self.sinkhorn_steps, potential)
                entropy = torch.special.entr(plan.clamp(1e-20, 1)).mean(1)
                of_sets = segment_mean(entropy, marginals.of_set, num_segments=len(marginals.of_slot))
                (grad,) = torch.autograd.grad(of_sets.sum(), cost, retain_graph=learning)
                grad = grad + 1e-20
                square = segment_sum(grad.square().sum(1), marginals.of_set, num_segments=len(marginals.of_slot))
                cost = cost - self.mesh_lr * grad / square.sqrt().clamp(min=1e-12)[marginals.of_set].unsqueeze(1)
                if not learning:
                    cost, potential = cost.detach().requires_grad_(), potential.detach()
            assert potential is not None
            return (cost, potential) if learning else (cost.detach(), potential)


class _Marginals(NamedTuple):
    """How much of each element ``[N]`` and of each slot ``[B, S]`` there is, and the set of each element ``[N]``."""

    of_element: Tensor
    of_slot: Tensor
    of_set: Tensor

    def plan(self, cost: Tensor, steps: int, potential: Tensor | None) -> tuple[Tensor, Tensor]:
        """The transport plan ``[N, S]`` of least entropic cost, and the potential of slots ``[B, S]`` it ends with."""
        count = len(self.of_slot)
        log_element, log_slot = self.of_element.clamp(min=1e-30).log(), self.of_slot.clamp(min=1e-30).log()
        if potential is None:
            potential = torch.zeros_like(log_slot)
        of_element = log_element
        for _ in range(steps):
            of_element = log_element - (potential[self.of_set] - cost).logsumexp(1)
            potential = log_slot - segment_logsumexp(of_element.unsqueeze(1) - cost, self.of_set, num_segments=count)
        return (of_element.unsqueeze(1) + potential[self.of_set] - cost).exp(), potential

    def detached(self) -> _Marginals:
        """Without gradients, and usable in any mode."""
        return _Marginals(*(x.detach().clone() for x in self))


def _marginals(channels: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 1, bias=False))


def _randn(like: Tensor, generator: torch.Generator | None, *shape: int) -> Tensor:
    """Normal random numbers, drawn where the generator is."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=device).to(like.device)
