"""Per-sample gradient norms of every layer, five ways: time and peak memory on the embedded ViT-B/16; or the standard
errors of GSNR, of all pairs and by strata, on the same images.

    python benchmarks/gsnr.py [--samples 64] [--groups 16] [--rounds 3] [--model baseline|corit] [--threads T]
        [--ways ours plain]
    python benchmarks/gsnr.py --errors MANIFEST [--samples 200] [--strata class|source] [--model baseline|corit]

    ours      corit_cli.gsnr.gradients.measure: norms, sums, sketches and token gradients, group by group
    plain     one ordinary forward and backward pass over the same samples in the same batches; no norms
    functorch torch.func vmap(grad) in chunks of the batch size, reduced to norms and sums
    opacus    Opacus' per-sample gradients, reduced to norms and sums (baseline only, if installed; see below)
    loop      a backward pass for every sample, its norms, and their sum

Every way runs in a fresh process of its own, once per round, one after the other. The clock starts after the weights
are loaded and one batch has warmed up; peak memory is the process's largest resident set. Opacus knows the parameters
of modules only, so there the class and position embeddings stay frozen and the last block runs on all tokens.

With ``--errors`` the parameters of every layer are measured at a random head, on as many real images as fake ones, and
GSNR comes out three ways: from the products of all pairs, as if the sample were independent draws, with jackknife
groups dealt whatever the class; by strata under independent draws, whose noise is the same; and by strata under
balanced batches. ``se ratio`` is the second standard error over the first.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import operator
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from corit_cli.cli.console import Bars
from corit_cli.data.manifest import load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.data.splits import deal, jackknife_groups, thin, units_of
from corit_cli.gsnr.gradients import Cell, bce_per_sample, measure, named_parameters
from corit_cli.gsnr.heads import initial_head
from corit_cli.gsnr.measured import Measured
from corit_cli.metrics.gsnr import Moments, estimate
from corit_cli.model.corit import CoRIT, Reading
from corit_cli.model.head import Head
from corit_cli.model.loading import load_backbone
from corit_cli.model.settings import METHOD, CoRITSettings, baseline
from corit_cli.training.settings import TrainSettings

Batches = list[tuple[Tensor, Tensor, Cell]]


class Model(nn.Module):
    """Images to logits."""

    def __init__(self, corit: CoRIT, head: Head) -> None:
        super().__init__()
        self.corit, self.head = corit, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.corit(images).z)


class WholeBlocks(nn.Module):
    """The baseline with every block run on all tokens through its modules."""

    def __init__(self, corit: CoRIT, head: Head) -> None:
        super().__init__()
        self.tower, self.head = corit.tower, head

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.normalize(self.tower.layers(images)[-1][:, 0], dim=-1))


def ours(model: Model, batches: Batches) -> float:
    found = measure(model.corit, model.head, batches)
    return sum(moments.squares.sum() for moments in found.parameters.values())


def plain(model: Model, batches: Batches) -> float:
    model.requires_grad_(True).zero_grad()
    for images, labels, _ in batches:
        bce_per_sample(model(images), labels).sum().backward()
    return float("nan")


def functorch(model: Model, batches: Batches) -> float:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(p: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return bce_per_sample(functional_call(model, p, (image[None],)), label[None])[0]

    per_sample = vmap(grad(loss), (None, 0, 0), randomness="same")
    return reduce(per_sample(parameters, images, labels).values() for images, labels, _ in batches)


def opacus(model: Model, batches: Batches) -> float:
    from opacus import GradSampleModule

    whole = WholeBlocks(model.corit, model.head).requires_grad_(True).train()
    tower = whole.tower
    for p in (tower.class_embedding, tower.position_embedding, tower.projection, *tower.ln_post.parameters()):
        p.requires_grad_(False)
    hooked = GradSampleModule(whole, loss_reduction="sum", strict=False)

    def grads() -> Iterator[list[Tensor]]:
        for images, labels, _ in batches:
            bce_per_sample(hooked(images), labels).sum().backward()
            yield [p.grad_sample for p in whole.parameters() if p.requires_grad]
            hooked.zero_grad()

    return reduce(grads())


def loop(model: Model, batches: Batches) -> float:
    parameters = list(named_parameters(model.corit.tower, model.head).values())
    model.requires_grad_(True)

    def grads() -> Iterator[list[Tensor]]:
        for images, labels, _ in batches:
            for image, label in zip(images, labels, strict=True):
                losses = bce_per_sample(model(image[None]), label[None])
                found = torch.autograd.grad(losses.sum(), parameters, allow_unused=True)
                yield [g[None] for g in found if g is not None]

    return reduce(grads())


def reduce(per_sample: Iterator) -> float:
    """Per-sample gradients, batch by batch, to their sums over samples and the total of their squared norms."""
    sums: list[Tensor] = []
    total = 0.0
    for grads in per_sample:
        for i, g in enumerate(grads):
            total += float(g.flatten(1).square().sum(1).sum())
            if i == len(sums):
                sums.append(torch.zeros_like(g[0]))
            sums[i] += g.sum(0)
    return total


WAYS: dict[str, Callable[[Model, Batches], float]] = {
    f.__name__: f for f in (ours, plain, functorch, opacus, loop)
}  # fmt: skip


def run_one(args: argparse.Namespace) -> None:
    """Child process: run one way and print its time, peak memory and total squared norm as JSON."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    tower = load_backbone().tower
    corit = CoRIT(tower, baseline(tower.config.layers) if args.model == "baseline" else CoRITSettings())
    head = Head(corit.width)
    nn.init.normal_(head.layers[0].weight)
    size = tower.config.image_size
    sample = torch.rand(args.samples, 3, size, size)
    batches = [
        (x, torch.full((len(x),), label), (label, j))
        for label, own in enumerate(sample.tensor_split(2))
        for j, x in enumerate(own.tensor_split(max(1, args.groups // 2)))
        if len(x)
    ]
    model = Model(corit, head)
    plain(model, batches[:1])
    model.requires_grad_(False).zero_grad()
    start = time.perf_counter()
    total = WAYS[args.measure](model, batches)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "mib": peak, "total": total}))


class FirstWindow:
    """The features of images (b, 1, 3, S, S)."""

    def __init__(self, corit: CoRIT) -> None:
        self.corit, self.tower = corit, corit.tower

    def __call__(self, images: Tensor) -> Reading:
        return self.corit(images[:, 0])


class AllPairs(Measured):
    """The samples as one stratum, in groups dealt whatever the class."""

    def cells(self, positions: Sequence[int]) -> Iterator[tuple[Cell, list[int]]]:
        for number, group in enumerate(jackknife_groups(self.units, seed=self.seed)):
            yield (0, number), group


def errors(args: argparse.Namespace) -> None:
    """Print every layer's GSNR times 1,000 with its standard error, three ways."""
    torch.set_num_threads(args.threads)
    tower = load_backbone().tower
    corit = CoRIT(tower, baseline(tower.config.layers) if args.model == "baseline" else METHOD)
    model, crops = FirstWindow(corit), CropConfig("native", tower.config.image_size)
    samples, count = load_samples(args.errors), args.samples or 200
    units = units_of(samples, photographs=True)
    fit, *rest = deal([s.label for s in samples], units, 3)
    parts = [thin(samples, units, part, count, seed=0) for part in (fit, sorted(i for part in rest for i in part))]
    kinds = AllPairs, AllPairs, Measured
    fitting, pairs, strata = (
        kind.read([samples[i] for i in part], [units[i] for i in part], crops, "cpu", 0, args.strata)
        for kind, part in zip(kinds, (parts[0], parts[1], parts[1]), strict=True)
    )
    with torch.inference_mode():
        z = torch.cat([model(images).z for images, *_ in fitting.batches(range(len(fitting.samples)))])
    head = initial_head(z.clone(), TrainSettings())
    every = range(len(strata.samples))
    weights, clustered = dict(enumerate(strata.strata(every).weights)), strata.clustered(every)
    with Bars() as bars:
        old = measure(model, head, pairs.batches(every), advance=bars("all pairs", len(every))).layers()
        new = measure(model, head, strata.batches(every), advance=bars("strata", len(every)), weights=weights).layers()
    print(f"{args.model}, {len(every)} images, {len(weights)} strata; GSNR x 1,000 and its standard error")
    print(f"{'layer':>6} {'all pairs':>16} {'strata':>16} {'se ratio':>9} {'balanced':>16}")
    for layer in new:
        line(layer, old[layer], new[layer], clustered)
    numbers = [layer for layer in new if layer.isdigit() and layer != "0"]
    blocks = [functools.reduce(operator.add, (found[layer] for layer in numbers)) for found in (old, new)]
    line("blocks", *blocks, clustered)


def line(layer: str, old: Moments, new: Moments, clustered: bool) -> None:
    """Print a row of the table."""
    pairs = estimate(old, clustered)
    strata, balanced = (estimate(new, clustered, draws) for draws in ("independent", "balanced"))
    texts = [f"{1000 * e.value:8.2f} ±{1000 * e.standard_error:6.2f}" for e in (pairs, strata, balanced)]
    ratio = strata.standard_error / pairs.standard_error
    print(f"{layer:>6} {texts[0]:>16} {texts[1]:>16} {ratio:9.2f} {texts[2]:>16}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, help="64; with --errors 200")
    parser.add_argument("--groups", type=int, default=16, help="batches, half of either class")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", choices=("baseline", "corit"), default="baseline")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--ways", choices=WAYS, nargs="+", default=list(WAYS), help="what to time; plain always")
    parser.add_argument("--measure", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--errors", type=Path, metavar="MANIFEST", help="standard errors on these images")
    parser.add_argument("--strata", choices=("class", "source"), default="class")
    args = parser.parse_args()
    if args.errors:
        return errors(args)
    args.samples = args.samples or 64
    if args.measure:
        return run_one(args)

    ways = [way for way in WAYS if way in {*args.ways, "plain"}]
    if args.model != "baseline" or not importlib.util.find_spec("opacus"):
        ways = [way for way in ways if way != "opacus"]
    results: dict[str, list[dict]] = {way: [] for way in ways}
    for number in range(args.rounds):
        for way in ways:
            command = [sys.executable, "-W", "ignore", __file__, *sys.argv[1:], "--measure", way]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
            if child.returncode:
                print(f"round {number + 1}: {way} failed with exit status {child.returncode}", flush=True)
                continue
            results[way].append(json.loads(child.stdout.splitlines()[-1]))
            print(f"round {number + 1}: {way:9} {results[way][-1]['seconds']:8.2f} s", flush=True)

    def median(way: str, key: str) -> float:
        return statistics.median([r[key] for r in results[way]] or [float("nan")])

    print(f"\n{args.model}, {args.samples} samples in {args.groups} batches, {args.threads} threads")
    print(f"{'way':9} {'seconds':>9} {'x plain':>8} {'MiB':>8} {'x plain':>8}  {'sum of squared norms':>20}")
    for way in ways:
        seconds, mib = median(way, "seconds"), median(way, "mib")
        times, share = seconds / median("plain", "seconds"), mib / median("plain", "mib")
        print(f"{way:9} {seconds:9.2f} {times:8.2f} {mib:8.0f} {share:8.2f}  {median(way, 'total'):20.6g}")


if __name__ == "__main__":
    main()
