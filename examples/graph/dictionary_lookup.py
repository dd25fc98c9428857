"""DictionaryLookup (Brody et al. 2022, section 4.1): a problem that GATv2 solves with one head and GAT does not.

python examples/graph/dictionary_lookup.py --plot lookup.png

A graph has K pairs, each with a key and a value, and K queries, each with a key; every query sees all pairs and has
to name the value of its key. For this, different queries must prefer different pairs. In a head of GAT all queries
rank them alike, whatever the parameters. Values are dealt anew in every graph, and the graphs for testing are those in
which some key has a value that it never has in training.

The network, its size and how graphs are split are those of the authors' code
(https://github.com/tech-srl/how_attentive_are_gats). To run in minutes, there are fewer graphs (4,000 instead of
32,000), batches are smaller, the learning rate is higher and training short; neither layer has self loops or a bias,
and dropout is off in evaluation. One head of GATv2 finds the solution at once from most seeds and gets stuck from
others, so that up to three are tried; the table has the best in training.
"""

from __future__ import annotations

import argparse
import itertools
import math
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, dropout
from tqdm import tqdm

from geoattn._optional import require
from geoattn.nn import GATConv, GATv2Conv


class Answers(NamedTuple):
    """Right answers, in percent."""

    training: float
    testing: float


LAYERS = {"GAT": (GATConv, {}), "GATv2": (GATv2Conv, {"share_weights": True})}


def deal(size: int, graphs: int = 4000) -> tuple[Tensor, Tensor]:
    """The values of all keys, one row for each graph, ``[graphs, size]``: for training and for testing."""
    if math.factorial(size) > graphs:
        values = torch.rand(graphs, size).argsort(1)
    else:
        values = torch.tensor(list(itertools.permutations(range(size))))
    seen = torch.zeros(size * size, dtype=torch.bool)
    seen[torch.randperm(size * size)[: int(0.8 ** (1 / size) * size**2)]] = True
    in_training = seen.view(size, size)[torch.arange(size), values].all(1)
    return values[in_training], values[~in_training]


@cache
def complete(graphs: int, size: int) -> Tensor:
    """Edges from all pairs to all queries, in every graph."""
    nodes = torch.arange(graphs * size).view(graphs, 1, size)
    pair, query = torch.broadcast_tensors(nodes, nodes.transpose(1, 2))
    return torch.stack([pair.flatten(), query.flatten()])


class Lookup(nn.Module):
    """Embeddings of keys and values, one layer of attention, and a linear layer."""

    def __init__(self, layer: str, size: int, heads: int, channels: int = 128) -> None:
        super().__init__()
        kind, options = LAYERS[layer]
        self.key = nn.Embedding(size, channels)
        self.value = nn.Embedding(size + 1, channels)  # the last one stands for the value that is asked for
        self.attention = kind(channels, channels // heads, heads=heads, add_self_loops=False, bias=False, **options)
        self.out = nn.Linear(channels, size, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        """Scores ``[graphs, size, size]`` of every query's possible values, from the pairs' values."""
        graphs, size = values.shape
        pairs = (self.key.weight + self.value(values)).relu().flatten(0, 1)
        queries = (self.key.weight + self.value.weight[-1]).relu().repeat(graphs, 1)
        found = self.attention((pairs, queries), complete(graphs, size))
        return self.out(dropout(found, 0.5, self.training)).view(graphs, size, size)


def train(layer: str, size: int, heads: int, *, graphs: int = 4000, steps: int = 2000, seed: int = 0) -> Answers:
    """Train a network; returns what share of its answers is right."""
    torch.manual_seed(seed)
    training, testing = deal(size, graphs)
    model = Lookup(layer, size, heads)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, steps)
    for _ in range(steps):
        values = training[torch.randint(len(training), (16,))]
        loss = cross_entropy(model(values).flatten(0, 1), values.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimizer.step()
        schedule.step()
    model.eval()
    return Answers(right(model, training), right(model, testing))


@torch.no_grad()
def right(model: nn.Module, graphs: Tensor) -> float:
    """Share of right answers, in percent."""
    answers = torch.cat([model(values).argmax(-1) for values in graphs.split(16)])
    return 100 * (answers == graphs).double().mean().item()


def plot(table: dict[tuple[str, int, int], Answers], path: Path) -> None:
    """Draw right answers against the size, in training and in testing."""
    figure = require("matplotlib.figure", "viz").Figure(figsize=(7.2, 3), layout="constrained")
    networks = list(dict.fromkeys((layer, heads) for layer, _, heads in table))
    for axes, part in zip(figure.subplots(1, 2, sharey=True), ("training", "testing"), strict=True):
        for i, (layer, heads) in enumerate(networks):
            sizes = [size for other, size, number in table if (other, number) == (layer, heads)]
            right = [getattr(table[layer, size, heads], part) for size in sizes]
            label = f"{layer}, {heads} head{'s' * (heads > 1)}" if part == "training" else None
            axes.plot(sizes, right, "-o", markersize=10 - 2 * i, label=label)  # whoever is on top hides nobody
        axes.set(title=part, xlabel="pairs", xticks=sizes, ylim=(0, 105))
    figure.axes[0].set_ylabel("right answers, %")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=150)


def main(arguments: list[str] | None = None) -> None:
    """Train every layer on every size and print what it learned."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[5, 10, 20, 30], help="numbers of pairs")
    parser.add_argument("--heads", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seeds", type=int, default=3, help="networks to try until one is right on all of training")
    parser.add_argument("--graphs", type=int, default=4000, help="for training and testing")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--plot", type=Path, help="a picture to write, for which matplotlib is needed")
    options = parser.parse_args(arguments)

    table: dict[tuple[str, int, int], Answers] = {}
    runs = list(itertools.product(LAYERS, options.sizes, options.heads))
    print("layer  pairs  heads  training  testing  seeds tried")
    for layer, size, heads in (bar := tqdm(runs, unit="problem", leave=False)):
        bar.set_description(f"{layer}, {size} pairs, {heads} heads")
        tried: list[Answers] = []
        while len(tried) < options.seeds and (not tried or max(tried).training < 100):
            tried.append(train(layer, size, heads, graphs=options.graphs, steps=options.steps, seed=len(tried)))
        best = table[layer, size, heads] = max(tried)  # in training
        tqdm.write(f"{layer:5}  {size:5}  {heads:5}  {best.training:6.2f} %  {best.testing:6.2f} %  {len(tried)}")
    if options.plot is not None:
        plot(table, options.plot)


if __name__ == "__main__":
    main()
