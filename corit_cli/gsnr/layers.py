"""Where in the backbone the gradient signal is: GSNR layer by layer, model against model, on the same images.

The images are split in two, with whatever belongs together (tiles of a photograph, a photograph and its forgery,
frames of a video) on one side. The heads are fitted on a third and every gradient is taken on the rest, so that a
head's memory of an image is never mistaken for signal.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample
from corit_cli.data.splits import FEWEST_UNITS, deal, jackknife_groups, thin, units_of
from corit_cli.data.windows import CropConfig, crop
from corit_cli.errors import CoritError
from corit_cli.features.cache import Job, extract
from corit_cli.features.extractor import BATCH, Extractor, Reader, mean_over_windows, pixels
from corit_cli.features.stream import ahead
from corit_cli.files import content_sha256
from corit_cli.gsnr.gradients import Cell, Gradients, measure
from corit_cli.gsnr.probes import probe_auc
from corit_cli.gsnr.proxy import measure_proxy
from corit_cli.gsnr.study import Compared, DifferenceRow, Row, Study, StudySettings
from corit_cli.metrics import gsnr
from corit_cli.metrics.gsnr import Moments
from corit_cli.model.corit import Reading
from corit_cli.model.head import Head
from corit_cli.model.loading import Backbone, state_sha256
from corit_cli.model.settings import CoRITSettings
from corit_cli.progress import Progress, quiet
from corit_cli.training.head import balance_weights, fit_head
from corit_cli.training.settings import TrainSettings
from corit_cli.version import __version__

#: Images a head is fitted on, for each image that gradients are measured on.
FIT_SHARE = 1
#: How heads are fitted.
TRAINING = TrainSettings(balance="source")


def study(
    samples: Sequence[Sample],
    backbone: Backbone,
    models: Sequence[Compared],
    crops: CropConfig,
    settings: StudySettings,
    device: str = "cpu",
    progress: Progress = quiet,
) -> Study:
    """Measure GSNR of every model, the differences from the first, the proxies' properties and the layers' probes.

    Raises CoritError when there are too few images, or of one class only, or a layer does not exist.
    """
    crops = replace(crops, interpolation=backbone.tower.config.interpolation)
    depth = backbone.tower.config.layers
    for layer in settings.layers or ():
        if not 0 <= layer <= depth:
            raise CoritError(f"there is no layer {layer}: the backbone has layers 0 (the embedding) to {depth}")
    extractors = {model.name: Extractor(backbone, model.settings, crops, device) for model in models}
    out, seed = Study(), settings.seed
    units = units_of(samples, photographs=True)
    fit, *rest = deal([s.label for s in samples], units, 3, seed)  # intervals need many units more than heads do
    measured = sorted(i for part in rest for i in part)
    fit = thin(samples, units, fit, FIT_SHARE * settings.samples, seed)
    measured = thin(samples, units, measured, settings.samples, seed)

    # The plain tower's class tokens of all layers: for the probes, and for models that read nothing else.
    tower = CoRITSettings(views=(), cgp=(), inject_at=(), integrate=tuple(range(1, depth + 1)))
    whole = Extractor(backbone, tower, crops, device)
    jobs = [Job(samples[i].path) for i in fit + measured]
    tokens, errors = extract(whole, jobs, advance=progress("class tokens", len(jobs)))
    out.left_out = [(samples[(fit + measured)[k]], message) for k, message in errors.items()]
    tokens = tokens[[k not in errors for k in range(len(jobs))]]
    fit, measured = (
        [i for k, i in enumerate(part, start) if k not in errors] for part, start in ((fit, 0), (measured, len(fit)))
    )
    _check(samples, units, fit, measured)
    by_layer = tokens.unflatten(1, (depth, -1)).numpy()  # (n, L, d)
    labels = [samples[i].label for i in fit + measured]
    out.probes = probe_auc(
        {layer: by_layer[:, layer - 1] for layer in tower.integrate}, labels, [units[i] for i in fit + measured], seed
    )

    prepared = []
    for model in models:
        if model.settings.contrasted:
            fitting = [Job(samples[i].path) for i in fit]
            advance = progress(f"{model.name}: features", len(fit))
            z, _ = extract(extractors[model.name], fitting, advance=advance)
        else:
            z = whole.select(tokens[: len(fit)], model.settings)
        heads = _heads(model, z, [samples[i] for i in fit], seed, device)
        prepared.append(_Prepared(model.name, _Windowed(extractors[model.name]), heads))
        if model.head is not None:
            out.notes.append(f"{model.name}: its head came from a checkpoint, which may have seen these images")

    data = _Measured.read([samples[i] for i in measured], [units[i] for i in measured], crops, device, seed)
    strata = {"all": list(range(len(measured)))} | _strata(data, settings.by, out.notes)
    for state in settings.states:
        for subset, positions in strata.items():
            _measure(out, prepared, data, settings, state=state, subset=subset, positions=positions, progress=progress)
    if not out.rows:
        raise CoritError("no gradient reaches the layers asked for: the models read none of them, nor what follows")
    for model in prepared:
        # Contrasts are read by the last reader, in native windows where there are both kinds.
        if model.features.readers[-1].corit.settings.contrasted:
            advance = progress(f"{model.name}: proxy", len(measured))
            out.proxies[model.name] = measure_proxy(
                model.features.readers[-1].corit,
                model.heads["fitted"],
                (model.features.last_pass(images, labels) for images, labels, _ in data.batches(strata["all"])),
                data.places(),
                advance,
            )
    if settings.wrt == "tokens" and any(len(model.features.readers) > 1 for model in prepared):
        out.notes.append("tokens are those of the resized images, which the class tokens are read from")
    out.about = _about(backbone, models, crops, settings, device)
    out.about["data"] = {
        "fingerprint": _fingerprint(samples, fit, measured),
        "fit": len(fit),
        "measured": len(measured),
        "measured_fakes": sum(samples[i].label for i in measured),
        "jackknife_groups": len(data.groups(strata["all"])),
        "clustered": data.clustered(strata["all"]),
    }
    return out


class _Windowed:
    """The features of images with all their windows (b, w, 3, S, S), as an Extractor reads and averages them."""

    def __init__(self, extractor: Extractor) -> None:
        self.tower, self.readers = extractor.backbone.tower, extractor.readers

    def __call__(self, images: Tensor) -> Reading:
        return Reading(torch.cat([self._read(reader, images) for reader in self.readers], dim=1))

    def _read(self, reader: Reader, images: Tensor) -> Tensor:
        return mean_over_windows(images, reader.windows, lambda rows: reader.corit(rows).z)  # (b, F_r)

    def last_pass(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The last reader's first window (b, 3, S, S), the labels, and what the other readers read (b, F0)."""
        with torch.no_grad():
            before = [self._read(reader, images) for reader in self.readers[:-1]]
        return images[:, self.readers[-1].windows[0]], labels, torch.cat([images.new_empty(len(images), 0), *before], 1)


@dataclass(frozen=True)
class _Prepared:
    """A model ready to be measured, with its heads by state."""

    name: str
    features: _Windowed
    heads: dict[str, Head]


def _check(samples: Sequence[Sample], units: Sequence[Hashable], fit: Sequence[int], measured: Sequence[int]) -> None:
    for name, part in (("fit heads on", fit), ("measure on", measured)):
        for label, kind in enumerate(("real", "fake")):
            if len({units[i] for i in part if samples[i].label == label}) < FEWEST_UNITS:
                raise CoritError(
                    f"the share of the images to {name} ({len(part)}) has fewer than {FEWEST_UNITS} independent {kind} "
                    "ones: give more images, or more --samples"
                )


def _measure(
    out: Study,
    models: Sequence[_Prepared],
    data: _Measured,
    settings: StudySettings,
    state: str,
    subset: str,
    positions: Sequence[int],
    progress: Progress,
) -> None:
    """Add to ``out`` what the models' gradients say at one head state on one subset."""
    found: dict[str, dict[tuple[str, str], Moments]] = {}
    clustered = data.clustered(positions)
    for model in models:
        title = f"{model.name}, {state} head" + (f", {subset}" if settings.by else "")
        gradients = measure(
            model.features,
            model.heads[state],
            data.batches(positions),
            advance=progress(title, len(positions)),
            layers=_tracked(settings),
            windows=len(model.features.readers[0].windows),
        )
        out.losses[model.name, state, subset] = gradients.loss
        found[model.name] = _moments(gradients, settings)
        for (part, layer), moments in found[model.name].items():
            try:
                balanced, independent = (
                    gsnr.estimate(moments, clustered, draws) for draws in ("balanced", "independent")
                )
            except ValueError as error:
                raise CoritError(f"{title}, layer {layer}: {error}") from None
            out.rows.append(Row(model.name, state, subset, part, layer, balanced, independent))
    reference = models[0].name
    for model in models[1:]:
        for key, moments in found[model.name].items():
            if key in found[reference]:
                difference = gsnr.compare(moments, found[reference][key], clustered)
                out.differences.append(DifferenceRow(model.name, reference, state, subset, *key, difference))


def _heads(model: Compared, z: Tensor, samples: Sequence[Sample], seed: int, device: str) -> dict[str, Head]:
    """A random and a fitted head on features ``z`` (n, F) of the fitting part."""
    training = replace(TRAINING, seed=seed, hidden=model.head.hidden if model.head else 0)
    torch.manual_seed(seed)
    initial = Head(z.shape[1], training.hidden)
    initial.fit_standardiser(z)
    fitted = model.head
    if fitted is None:
        labels = [s.label for s in samples]
        weights = balance_weights(labels, [s.source for s in samples], training.balance)
        fitted = fit_head(z, torch.tensor(labels), weights, training)
    return {"initial": initial.to(device), "fitted": fitted.to(device)}


@dataclass(frozen=True)
class _Measured:
    """The measured part: windows (n, w, S, S, 3) uint8, samples, and the units they belong to."""

    windows: Tensor
    samples: list[Sample]
    units: list[Hashable]
    device: str
    seed: int

    @classmethod
    def read(cls, samples: list[Sample], units: list[Hashable], crops: CropConfig, device: str, seed: int) -> _Measured:
        """Decode the samples' windows."""
        windows = ahead(lambda s: crop(read_image(s.path), crops), samples, workers=4, window=16)
        return cls(torch.from_numpy(np.stack(list(windows))), samples, units, device, seed)

    def clustered(self, positions: Sequence[int]) -> bool:
        """Whether any of the samples belong together."""
        return len({self.units[i] for i in positions}) < len(positions)

    def groups(self, positions: Sequence[int]) -> list[list[int]]:
        """Jackknife groups of some of the samples, as positions; each holds the classes in much the same mix."""
        labels, units = [self.samples[i].label for i in positions], [self.units[i] for i in positions]
        return [[positions[k] for k in group] for group in jackknife_groups(units, labels, seed=self.seed)]

    def cells(self, positions: Sequence[int]) -> Iterator[tuple[Cell, list[int]]]:
        """Some of the samples by class and jackknife group, class by class."""
        groups = self.groups(positions)
        for label in sorted({self.samples[i].label for i in positions}):
            for number, group in enumerate(groups):
                own = [i for i in group if self.samples[i].label == label]
                if own:
                    yield (label, number), own

    def batches(self, positions: Sequence[int]) -> Iterator[tuple[Tensor, Tensor, Cell]]:
        """Images with their windows (b, w, 3, S, S) in [0, 1], labels (b,) and their cell, cell by cell."""
        size = max(1, BATCH[torch.device(self.device).type] // self.windows.shape[1])
        for cell, members in self.cells(positions):
            for start in range(0, len(members), size):
                part = members[start : start + size]
                images = pixels(self.windows[part], self.device)  # (b, w, 3, S, S)
                yield images, torch.full((len(part),), cell[0], device=self.device), cell

    def places(self) -> list[list[int]]:
        """The jackknife groups of all samples as places in the order of :meth:`batches`."""
        groups: dict[int, list[int]] = defaultdict(list)
        start = 0
        for (_, number), members in self.cells(range(len(self.samples))):
            groups[number] += range(start, start + len(members))
            start += len(members)
        return [groups[number] for number in sorted(groups)]


def _strata(data: _Measured, by: str | None, notes: list[str]) -> dict[str, list[int]]:
    """Positions by class or source; those with too few units for an interval are left out, with a note."""
    if by is None:
        return {}
    names = [("real", "fake")[s.label] if by == "class" else s.source or "unnamed" for s in data.samples]
    strata = {name: [i for i, n in enumerate(names) if n == name] for name in sorted(set(names))}
    if by == "class":
        strata = dict(sorted(strata.items(), reverse=True))  # real, then fake
    small = []
    for name, positions in strata.items():
        units = {(data.samples[i].label, data.units[i]) for i in positions}  # of each class, as it is a stratum
        if min(Counter(label for label, _ in units).values()) < FEWEST_UNITS:
            small.append(name)
    if small:
        notes.append(f"not measured by themselves, for want of independent images: {', '.join(small)}")
    return {name: positions for name, positions in strata.items() if name not in small}


def _tracked(settings: StudySettings) -> tuple[str, ...] | None:
    """The layers whose parameters :func:`measure` follows."""
    if settings.wrt == "tokens":
        return ("0",)  # the gradient then passes through the tokens of all layers, and no block's weights cost anything
    return None if settings.layers is None else tuple(map(str, settings.layers))


def _moments(gradients: Gradients, settings: StudySettings) -> dict[tuple[str, str], Moments]:
    """Moments by (part, layer), for the layers asked for that some gradient reaches."""
    if settings.wrt == "tokens":
        found = {(part, str(layer)): m for (layer, part), m in gradients.tokens.items()}
        found = {key: found[key] for key in sorted(found, key=lambda k: (k[0], int(k[1])))}
    else:
        found = {("params", layer): m for layer, m in gradients.layers().items()}
    wanted = None if settings.layers is None else set(map(str, settings.layers))
    return {k: m for k, m in found.items() if (wanted is None or k[1] in wanted) and m.squares.any()}


def _fingerprint(samples: Sequence[Sample], fit: Sequence[int], measured: Sequence[int]) -> str:
    """SHA-256 over the contents, labels and roles of the images."""
    lines = [
        f"{content_sha256(samples[i].path)} {samples[i].label} {role}"
        for role, part in (("fit", fit), ("measured", measured))
        for i in part
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _about(
    backbone: Backbone, models: Sequence[Compared], crops: CropConfig, settings: StudySettings, device: str
) -> dict[str, Any]:
    """What it takes to do it again, the images aside."""
    return {
        "corit": __version__,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "device": device,
        "threads": torch.get_num_threads(),
        "backbone": {"name": backbone.name, "sha256": backbone.sha256},
        "settings": asdict(settings),
        "crops": asdict(crops),
        "training": asdict(replace(TRAINING, seed=settings.seed)),
        "models": [
            {
                "name": m.name,
                "settings": asdict(m.settings),
                "head_sha256": m.head and state_sha256(m.head.state_dict()),
            }
            for m in models
        ],
    }
