"""Train parts of the tower together with the head: images are decoded ahead, seen through all their windows, forgotten.

Sources that the tower has seen cannot say what it will make of others. So about a fifth of the training sources is set
aside: their loss ends the training and chooses the epoch, and calibration and thresholds are fitted on them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample
from corit_cli.data.splits import source_split
from corit_cli.data.windows import crop
from corit_cli.errors import CoritError
from corit_cli.features.cache import Job
from corit_cli.features.extractor import Extractor, Reader, mean_over_windows, pixels
from corit_cli.features.stream import ahead, loaders
from corit_cli.files import content_sha256
from corit_cli.model.corit import CoRIT
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.precision import pick_precision
from corit_cli.model.scope import draw_low_rank, parse_scope, thaw, tuned_backbone, tuned_tensors
from corit_cli.model.settings import HeadKind
from corit_cli.training.fusion import HeldOut
from corit_cli.training.log import Epoch
from corit_cli.training.resume import State, moments, restore_moments
from corit_cli.training.rows import TrainingSet
from corit_cli.training.run import Run, Trained, outcome
from corit_cli.training.sam import SAM, base_optimizer
from corit_cli.training.settings import TUNE_LR, TrainSettings, TuneSettings

#: Share of the training part that is set aside, in whole sources.
ASIDE = 0.2
#: The head begins at its optimum on the untuned features and then follows with this share of its own step size.
HEAD_SHARE = 0.01


def train_tower(run: Run, tuning: TuneSettings, state: Path, resume: bool = False) -> Trained:
    """Tune, calibrate and validate; ``run.settings`` are those of the head, first fitted to the untuned features.

    After every epoch the run is written to ``state``, from which ``resume`` goes on; the caller removes that file once
    the outcome is safe. Raises CoritError when a class is missing, the scope does not fit the backbone, the training
    diverges, or ``state`` is of another run.
    """
    # What is set aside are images as they are: none would join the heads for degraded ones.
    run = replace(run, settings=replace(run.settings, degradation_aware=False))
    samples, extractor, settings, world = run.samples, run.extractor, run.settings, run.world
    scope = parse_scope(tuning.scope)
    differentiable = "fp32" if tuning.precision == "int8" else tuning.precision
    precision = pick_precision(differentiable, extractor.device.type)
    lr = TUNE_LR[scope.kind] if tuning.lr is None else tuning.lr
    tuning = replace(tuning, precision=precision, lr=lr)
    fit_part = set_aside(samples, run.train_part, settings.seed)
    model = Model(extractor, tuning, settings)  # so that a scope that does not fit is said at once
    about = {
        "--tune settings": asdict(tuning),
        "settings": asdict(settings),
        "recipe": asdict(run.recipe),
        "CoRIT settings": asdict(extractor.settings),
        "crops": asdict(extractor.crops),
        "backbone": extractor.backbone.sha256,
        "processes": world.size,
        "device": extractor.device.type,
        "images": world.agree(lambda: _fingerprint(samples, run.train_part, fit_part)),
    }
    before = world.agree(lambda: State.load(state, about)) if resume else None
    images = run.read()

    owners = torch.tensor([row.sample for row in images.data.rows])
    in_fit = torch.isin(owners, torch.tensor(fit_part))
    fitted = images.data.chosen(in_fit & images.data.trained)
    aside = images.data.chosen(~in_fit & images.data.originals)
    if min(len(data.labels[data.whole].unique()) for data in (fitted, aside)) < 2:
        raise CoritError("without the images that cannot be read, no real or no fake ones are left")
    advance = run.progress("head", len(model.head.names) * settings.epochs)
    model.head = fitted.heads(settings, advance=advance, log=partial(run.log, stage="head"))
    model.to(extractor.device)

    history = tune(run, model, fitted, aside, tuning=tuning, path=state, about=about, before=before)

    tensors = tuned_tensors(model.tower)
    tuned = extractor.on(tuned_backbone(extractor.backbone, tensors))
    jobs = [row.job for row in aside.rows] + [Job(sample.path) for sample in images.val]
    z, errors = run.features(tuned, jobs, "tuned features", cached=False)
    if errors:
        number, message = next(iter(errors.items()))
        raise CoritError(f"{jobs[number].path} could be read before, and cannot now: {message}")
    head = model.head.cpu().eval()
    with torch.inference_mode():
        each = head.each(z[: len(aside.rows)])  # (a, R)
    numbers = {source: k for k, source in enumerate(sorted(set(aside.sources)))}
    folds = torch.tensor([numbers[source] for source in aside.sources])
    heads = dict.fromkeys(numbers.values(), head)  # one tower and its heads never saw any of them
    owners, touched = [row.sample for row in aside.rows], ~aside.originals
    held_out = HeldOut(owners, each, aside.labels, folds, touched, heads, aside.sources, settings.balance)
    held_out.join(head)
    chosen = {
        "set_aside": {"images": len(aside.rows), "sources": sorted(set(aside.sources))},
        "epochs": history,
        "epoch": best_epoch(history),
    }
    training = {"tune": asdict(tuning) | chosen}
    return outcome(run, images, head, z[len(aside.rows) :], held_out, tensors, training)


def tune(
    run: Run,
    model: Model,
    fitted: TrainingSet,
    aside: TrainingSet,
    tuning: TuneSettings,
    path: Path,
    about: Mapping[str, Any],
    before: State | None = None,
) -> list[dict[str, float]]:
    """The training loop: ``model`` is left with the weights of the epoch whose loss on ``aside`` was lowest.

    Returns what ``training/log.py`` says of every epoch, losses over all processes; the first entry, before any step,
    has ``held_out`` alone.
    """
    n, device, settings, world = len(fitted.rows), model.device, run.settings, run.world
    if min(n, tuning.batch_size) < world.size:
        raise CoritError(f"{world.size} processes cannot share batches of {min(n, tuning.batch_size)}")
    y = fitted.labels.float().to(device)  # (n,)
    weights = fitted.weights_by_head(settings, model.head.names).to(device)  # (n, R)
    net = world.wrap(model)
    optimizer = _optimizer(model, tuning, settings)
    sam = SAM(optimizer, tuning.rho)
    steps = max(1, n // tuning.batch_size)
    generator = torch.Generator().manual_seed(settings.seed)
    if before is None:
        history = [{"held_out": held_out_loss(run, model, aside, tuning)}]
        best: dict[str, Tensor] = {}
    else:
        history, best = before.history, before.best
        model.take(before.weights)
        restore_moments(optimizer, before.optimizer)
        generator.set_state(before.random)
    for epoch, seen in enumerate(history):
        run.log(stage="tune", epoch=epoch, **seen)

    def loss(one: MicroBatch) -> Tensor:
        """Its share of the weighted mean over the whole batch, times the processes, over which DDP averages."""
        # Processes talk once a pass, in the backward of the last micro-batch.
        with nullcontext() if one.last or world.size == 1 else net.no_sync():
            logits = net(pixels(one.windows, device))  # (b, R)
        return _losses(logits, y[one.rows], weights[one.rows]).sum() * (world.size / one.batch)

    while len(history) <= tuning.epochs and not _patience_is_over(history, tuning.patience):
        epoch = len(history)
        batches = torch.randperm(n, generator=generator).tensor_split(steps)
        shares = [world.share(batch) for batch in batches]
        advance = run.progress(f"epoch {epoch} of {tuning.epochs}", sum(map(len, shares)) + 1)
        windows = decoded([fitted.rows[i].job for share in shares for i in share.tolist()], model, tuning)
        steps_seen = Epoch(tuning.lr * _share_left((epoch - 1) / tuning.epochs))
        for number, (batch, share) in enumerate(zip(batches, shares, strict=True)):
            done = ((epoch - 1) * steps + number) / (tuning.epochs * steps)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * _share_left(done)
            seen = torch.stack(list(islice(windows, len(share))))  # (b, w, S, S, 3) uint8
            pieces = list(zip(share.split(tuning.micro_batch), seen.split(tuning.micro_batch), strict=True))
            micro_batches = [MicroBatch(rows, x, len(batch), rows is pieces[-1][0]) for rows, x in pieces]
            steps_seen.add(sam.step(loss, micro_batches), len(batch))
            advance(len(share))
        means = steps_seen.means
        names = ("loss", "perturbed")  # gradients are the mean of all processes' already
        shares = torch.tensor([means[name] for name in names], dtype=torch.float64) / world.size
        means |= zip(names, world.total(shares).tolist(), strict=True)
        held_out = held_out_loss(run, model, aside, tuning)
        history.append(means | {"held_out": held_out})
        if not math.isfinite(held_out):
            raise CoritError(f"the training diverged in epoch {epoch}: lower --tune-lr or --tune-rho")
        if best_epoch(history) == epoch:
            best = model.copy()
        if world.rank == 0:
            now = State(
                weights=model.copy(),
                best=best,
                optimizer=moments(optimizer),
                random=generator.get_state(),
                history=history,
            )
            now.save(path, about)
        run.log(stage="tune", epoch=epoch, **history[-1])
        advance(1, f"loss {means['loss']:.4f}, on sources set aside {held_out:.4f}")
    model.take(best)
    return history


class Model(nn.Module):
    """A tower with a thawed part, read through all windows of an image as an Extractor does, and a head on top.

    The streams run under autocast where the precision is a lower one; pixels, contrast views, embedding and head stay
    in float32: a view differs from its image by less than bf16 resolves.
    """

    def __init__(self, extractor: Extractor, tuning: TuneSettings, settings: TrainSettings) -> None:
        super().__init__()
        end = max(reader.corit.end for reader in extractor.readers)
        self.tower, self.frozen_blocks = thaw(extractor.backbone.tower, parse_scope(tuning.scope), end)
        draw_low_rank(dict(self.tower.named_parameters()), settings.seed)
        self.readers = [Reader(r.windows, CoRIT(self.tower, r.corit.settings)) for r in extractor.readers]
        kind, widths = HeadKind.parse(settings.head), settings.heads_of(extractor.readings)
        self.head = FusedHead({name: Head(width, kind) for name, width in widths.items()})
        self.crops, self.precision = extractor.crops, tuning.precision
        if tuning.grad_checkpoint:
            for block in self.tower.blocks[max(0, self.frozen_blocks) : end]:
                # Nothing in a block is random, so there is no random state to bring back.
                block.forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.tower.class_embedding.device

    def forward(self, images: Tensor) -> Tensor:
        """Images with all their windows (b, w, 3, S, S) in [0, 1] to every head's logit (b, R)."""
        z = [mean_over_windows(images, r.windows, partial(self._read, r.corit)) for r in self.readers]
        return self.head.each(torch.cat(z, 1))

    def _read(self, corit: CoRIT, images: Tensor) -> Tensor:
        """Windows (n, 3, S, S) to features (n, F_r)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.frozen_blocks < 0):
            state = corit.start(images)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            with torch.no_grad():
                state = corit.run(state, min(max(0, self.frozen_blocks), corit.end))
            state = corit.run(state, corit.end)
        return corit.read(state).z.float()

    def _trained(self) -> dict[str, Tensor]:
        every = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return every | {f"head.{name}": buffer for name, buffer in self.head.named_buffers()}

    def copy(self) -> dict[str, Tensor]:
        """What training changes, and the standardiser, by name, copied to the CPU."""
        return {name: t.detach().to("cpu", copy=True) for name, t in self._trained().items()}

    @torch.no_grad()
    def take(self, weights: dict[str, Tensor]) -> None:
        """Go back to what :meth:`copy` gave."""
        for name, t in self._trained().items():
            t.copy_(weights[name])


@dataclass(frozen=True)
class MicroBatch:
    """Positions of its rows (b,), their windows (b, w, S, S, 3) uint8, the size of the batch over all processes, and
    whether it is this process's last one of that batch."""

    rows: Tensor
    windows: Tensor
    batch: int
    last: bool


def decoded(jobs: Sequence[Job], model: Model, tuning: TuneSettings) -> Iterator[Tensor]:
    """Windows (w, S, S, 3) uint8 that ``model`` reads of each job in order, decoded ahead in threads."""

    def load(job: Job) -> Tensor:
        try:
            return torch.from_numpy(crop(job.variant.apply(read_image(job.path)), model.crops))
        except CoritError as error:
            raise CoritError(f"{job.path} could be read before, and cannot now: {error}") from None

    return ahead(load, jobs, workers=loaders(model.device.type), window=max(16, 2 * tuning.micro_batch))


@torch.no_grad()
def held_out_loss(run: Run, model: Model, aside: TrainingSet, tuning: TuneSettings) -> float:
    """The weighted mean of all heads' loss on the images set aside, each process with its share of them."""
    share = run.world.share(range(len(aside.rows)))
    windows = decoded([aside.rows[i].job for i in share], model, tuning)
    logits = torch.zeros(len(aside.rows), len(model.head.names))  # (a, R)
    for start in range(0, len(share), tuning.micro_batch):
        seen = torch.stack(list(islice(windows, tuning.micro_batch)))  # (b, w, S, S, 3)
        logits[share[start : start + tuning.micro_batch]] = model(pixels(seen, model.device)).cpu()  # (b, R)
    weights = aside.weights_by_head(run.settings, model.head.names)  # (a, R)
    return float(_losses(run.world.total(logits), aside.labels.float(), weights).mean())


def _losses(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Losses of every head's logits (b, R), with ``labels`` (b,) and ``weights`` (b, R): the heads' mean (b,)."""
    truth = labels[:, None].expand_as(logits)  # (b, R)
    return F.binary_cross_entropy_with_logits(logits, truth, weight=weights, reduction="none").mean(1)


def _share_left(done: float) -> float:
    """What a cosine schedule leaves of the step size when so much is ``done``, from 0 to 1."""
    return (1 + math.cos(math.pi * done)) / 2


def best_epoch(history: Sequence[dict[str, float]]) -> int:
    """The epoch, from 1, with the lowest held-out loss, the first of several."""
    return min(range(1, len(history)), key=lambda k: history[k]["held_out"])


def _patience_is_over(history: Sequence[dict[str, float]], patience: int) -> bool:
    return 0 < patience <= len(history) - 1 and len(history) - 1 - best_epoch(history) >= patience


def set_aside(samples: Sequence[Sample], train_part: Sequence[int], seed: int) -> list[int]:
    """The part of the training part that is tuned on; what is set aside are whole sources where there are enough.

    Raises CoritError when either lacks a class.
    """
    sides = source_split([samples[i] for i in train_part], ASIDE, seed)
    for name, part in zip(("left to tune on", "set aside"), sides, strict=True):
        if len({samples[train_part[k]].label for k in part}) < 2:
            raise CoritError(
                f"of the training images, those {name} ({len(part)}) have one class only: give more sources"
            )
    return [train_part[k] for k in sides[0]]


def _optimizer(model: Model, tuning: TuneSettings, settings: TrainSettings) -> torch.optim.Optimizer:
    """The optimizer over tower and head; ``initial_lr`` is where the cosine schedule begins."""
    tower = [p for p in model.tower.parameters() if p.requires_grad]
    rates = ((tower, tuning.lr), (list(model.head.parameters()), settings.lr * HEAD_SHARE))
    groups = [{"params": parameters, "lr": lr, "initial_lr": lr} for parameters, lr in rates]
    return base_optimizer(settings.optimizer, groups, settings.lr, settings.weight_decay)


def _fingerprint(samples: Sequence[Sample], train_part: Sequence[int], fit_part: Sequence[int]) -> str:
    """SHA-256 over the contents, labels, sources and roles of the training images, in order."""
    digests = ahead(content_sha256, (samples[i].path for i in train_part), workers=4, window=64)
    chosen = set(fit_part)
    lines = [
        f"{digest} {samples[i].label} {samples[i].source} {i in chosen}"
        for i, digest in zip(train_part, digests, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
