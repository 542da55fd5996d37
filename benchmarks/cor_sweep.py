"""All radii and seeds of a head sweep in one batched program, against a loop over pytorch-optimizer's SAM.

    pip install pytorch-optimizer
    python benchmarks/cor_sweep.py [--radii 20] [--seeds 5] [--hidden 0 64 256] [--features 768] [--rounds 3]

Both train the same heads on the same batches of random features, one after the other in every round; the loop runs a
share of the members (``--share``) and is scaled up, since its members do not depend on each other. Ratios are of
medians. For the hidden layers the last column says how far from the memory's speed the batched program is: the bytes
that it cannot but move in a step (weights read once, gradients written once, and AdamW's pass over weights, gradients
and state) divided by its time, as a share of what copying a large tensor reaches here.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from pytorch_optimizer import SAM as TheirSAM

from corit_cli.cor.heads import batches, train_population
from corit_cli.cor.settings import Optimization
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind

#: Passes over the weights that a step cannot do without: the forward pass reads them, the backward pass writes the
#: gradient, and AdamW reads weights, gradient and two moments and writes all but the gradient.
PASSES = 1 + 1 + 4 + 3


def batched(x: torch.Tensor, y: torch.Tensor, radii: list[float], seeds: list[int], o: Optimization) -> float:
    """Seconds for all members."""
    start = time.perf_counter()
    train_population(x, y, torch.arange(len(x)), seeds, radii, o)
    return time.perf_counter() - start


def looped(x: torch.Tensor, y: torch.Tensor, members: list[tuple[float, int]], o: Optimization) -> float:
    """Seconds for some members, one after the other."""
    start = time.perf_counter()
    for rho, seed in members:
        torch.manual_seed(seed)
        head = Head(x.shape[1], HeadKind(o.hidden)).layers
        sam = TheirSAM(head.parameters(), torch.optim.AdamW, rho=rho, lr=o.lr, weight_decay=o.weight_decay)
        for batch in batches(o, len(x), seed):
            for step in (sam.first_step, sam.second_step):
                F.binary_cross_entropy_with_logits(head(x[batch]).squeeze(-1), y[batch].float()).backward()
                step(zero_grad=True)
    return time.perf_counter() - start


def copy_speed() -> float:
    """Bytes a second, read and written, of copying a tensor that no cache holds."""
    a = torch.zeros(64_000_000)
    b = torch.ones_like(a)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        b.copy_(a)
        times.append(time.perf_counter() - start)
    return 2 * 4 * len(a) / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--radii", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--hidden", type=int, nargs="+", default=[0, 64, 256])
    parser.add_argument("--features", type=int, default=768)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=0.2, help="share of the members that the loop runs")
    args = parser.parse_args()

    torch.manual_seed(0)
    x = torch.randn(args.images, args.features) / args.features**0.5
    y = (x[:, 0] > 0).long()
    radii, seeds = np.geomspace(0.01, 0.5, args.radii).tolist(), list(range(args.seeds))
    every = [(rho, seed) for rho in radii for seed in seeds]
    few = every[:: max(1, round(1 / args.share))]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {len(every)} members, {args.rounds} rounds")
    print(f"{'head':>8} {'batched s':>10} {'loop s':>8} {'times faster':>13} {'of the copying speed':>21}")
    for hidden in args.hidden:
        o = Optimization(hidden=hidden, lr=1e-3, epochs=args.epochs, batch_size=32)
        batched(x, y, radii[:1], seeds, o)
        ours, theirs = [], []
        for _ in range(args.rounds):
            ours.append(batched(x, y, radii, seeds, o))
            theirs.append(looped(x, y, few, o) * len(every) / len(few))
        a, b = statistics.median(ours), statistics.median(theirs)
        size = sum(p.numel() for p in Head(args.features, HeadKind(hidden)).parameters()) * 4 * len(every)
        speed = PASSES * size * o.steps(args.images) / a / copy_speed()
        share = f"{speed:.0%}" if hidden else ""
        print(f"{hidden or 'linear':>8} {a:10.2f} {b:8.2f} {b / a:13.1f} {share:>21}", flush=True)


if __name__ == "__main__":
    main()
