"""Where in the backbone the gradient signal is: GSNR layer by layer, model against model, on the same images.

The images are split in two, with whatever belongs together (tiles of a photograph, a photograph and its forgery,
frames of a video) on one side. The heads are fitted on a third and every gradient is taken on the rest, so that a
head's memory of an image is never mistaken for signal.
"""

from __future__ import annotations

import hashlib
import platform
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corit_cli.data.manifest import Sample
from corit_cli.data.settings import CropConfig
from corit_cli.data.splits import FEWEST_UNITS, deal, thin, units_of
from corit_cli.errors import CoritError
from corit_cli.features.cache import FeatureCache, Job, extract
from corit_cli.features.extractor import Extractor, Reader, mean_over_windows
from corit_cli.files import content_sha256
from corit_cli.gsnr.gradients import Gradients, measure
from corit_cli.gsnr.heads import heads_at, initial_like, measure_heads
from corit_cli.gsnr.measured import Measured, subsets
from corit_cli.gsnr.probes import probe_auc
from corit_cli.gsnr.proxy import measure_proxy
from corit_cli.gsnr.settings import StudySettings, epochs_of
from corit_cli.gsnr.study import Compared, Layer, Study
from corit_cli.metrics.gsnr import Moments
from corit_cli.model.corit import Reading
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.loading import Backbone, state_sha256
from corit_cli.model.settings import CoRITSettings
from corit_cli.progress import Progress, quiet
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
    cache: FeatureCache | None = None,
) -> Study:
    """Measure GSNR of every model, the differences from the first, the proxies' properties and the layers' probes.

    With gradients of heads alone the proxies are left out, and a model stands for what is read at every layer: the
    class token, or, where it uses contrasts, the class token's contrast. ``cache`` keeps class tokens and contrasts.

    Raises CoritError when there are too few images, or of one class only, or a layer or epoch does not exist.
    """
    crops = replace(crops, interpolation=backbone.tower.config.interpolation)
    depth = backbone.tower.config.layers
    for layer in settings.layers or ():
        if not 0 <= layer <= depth:
            raise CoritError(f"there is no layer {layer}: the backbone has layers 0 (the embedding) to {depth}")
    stages = [epochs_of(state) for state in settings.states if state not in ("initial", "fitted")]
    if stages and max(stages) > TRAINING.epochs:
        raise CoritError(f"heads are fitted for {TRAINING.epochs} epochs: there is no epoch {max(stages)}")
    if stages and settings.wrt != "head" and any(model.head is not None for model in models):
        raise CoritError("a checkpoint's head is fitted already: give --head-state init, fitted or both")
    out, seed, units = Study(), settings.seed, units_of(samples, photographs=True)
    fit, measured = chosen_of(samples, settings)

    # The plain tower's class tokens of all layers: for the probes, and for models that read nothing else.
    tower = CoRITSettings(views=(), cgp=(), inject_at=(), integrate=tuple(range(1, depth + 1)))
    whole = Extractor(backbone, tower, crops, device)
    jobs = [Job(samples[i].path) for i in fit + measured]
    tokens, errors = extract(whole, jobs, cache, progress("class tokens", len(jobs)))
    out.left_out = [(samples[(fit + measured)[k]], message) for k, message in errors.items()]
    tokens = tokens[[k not in errors for k in range(len(jobs))]]
    jobs = [job for k, job in enumerate(jobs) if k not in errors]
    fit, measured = (
        [i for k, i in enumerate(part, start) if k not in errors] for part, start in ((fit, 0), (measured, len(fit)))
    )
    _check(samples, units, fit, measured)
    by_layer = tokens.unflatten(1, (depth, -1))  # (n, L, d)
    labels, own = [samples[i].label for i in fit + measured], [units[i] for i in fit + measured]
    out.probes = probe_auc({layer: by_layer[:, layer - 1].numpy() for layer in tower.integrate}, labels, own, seed)
    out.about = _about(backbone, models, crops, settings, device)
    out.about["data"] = {
        "fingerprint": _fingerprint(samples, fit, measured),
        "fit": len(fit),
        "measured": len(measured),
        "measured_fakes": sum(labels[len(fit) :]),
    }
    fitting = labels[: len(fit)], [samples[i].source for i in fit]

    if settings.wrt == "head":
        read = {}
        for model in models:
            z = read[model.name] = by_layer  # (n, L, d)
            if model.settings.contrasted:
                contrasts = replace(model.settings, cgp=tower.integrate, patches=False, integrate=(), inject_at=())
                advance = progress(f"{model.name}: contrasts", len(jobs))
                z, _ = extract(whole.with_settings(contrasts), jobs, cache, advance)
                read[model.name] = z.unflatten(1, (depth, -1))
            what = "contrast" if model.settings.contrasted else "class token"
            out.notes.append(f"{model.name} stands for a linear head on every layer's {what}, each by itself")
            if model.head is not None:
                out.notes.append(f"{model.name}: the checkpoint's head is left out, for every layer has one of its own")
        training, sources = replace(TRAINING, seed=seed), [samples[i].source for i in measured]
        measure_heads(out, read, fitting, labels[len(fit) :], own[len(fit) :], training, settings, sources)
        return out

    prepared = []
    extractors = {model.name: Extractor(backbone, model.settings, crops, device) for model in models}
    for model in models:
        if not model.settings.inject_at and set(extractors[model.name].parts) <= set(whole.parts):
            z = whole.select(tokens[: len(fit)], model.settings)
        else:
            advance = progress(f"{model.name}: features", len(fit))
            z, _ = extract(extractors[model.name], jobs[: len(fit)], cache, advance)
        drawn = [replace(TRAINING, seed=seed + draw) for draw in range(settings.heads)]
        if model.head is None:
            states = [settings.states_of(draw) for draw in range(settings.heads)]
            states[0] += ("fitted",)  # the proxy is measured at it
            heads = [heads_at(wanted, z, *fitting, training) for wanted, training in zip(states, drawn, strict=True)]
        else:
            heads = [{"initial": initial_like(model.head, z, training)} for training in drawn]
            heads[0]["fitted"] = model.head.untouched()  # as its heads are trained: what tells degraded pictures is not
        heads = [{state: head.to(device) for state, head in one.items()} for one in heads]
        prepared.append(_Prepared(model.name, _Windowed(extractors[model.name]), heads))
        if model.head is not None:
            out.notes.append(f"{model.name}: its head came from a checkpoint, which may have seen these images")

    used = [samples[i] for i in measured], [units[i] for i in measured]
    data = Measured.read(*used, crops, device, seed, settings.strata)
    chosen = {"all": list(range(len(measured)))} | subsets(data, settings.by, out.notes)
    for state in settings.states:
        for subset, positions in chosen.items():
            _measure(out, prepared, data, settings, state=state, subset=subset, positions=positions, progress=progress)
    if not out.rows:
        raise CoritError("no gradient reaches the layers asked for: the models read none of them, nor what follows")
    for model in prepared:
        # Contrasts are read by the last reader, in native windows where there are both kinds.
        if model.features.readers[-1].corit.settings.contrasted:
            advance = progress(f"{model.name}: proxy", len(measured))
            out.proxies[model.name] = measure_proxy(
                model.features.readers[-1].corit,
                model.heads[0]["fitted"],
                (model.features.last_pass(images, labels) for images, labels, _ in data.batches(chosen["all"])),
                data.places(),
                advance,
            )
    if settings.wrt == "tokens" and any(len(model.features.readers) > 1 for model in prepared):
        out.notes.append("tokens are those of the resized images, which the class tokens are read from")
    out.about["data"] |= {
        "jackknife_groups": len(data.groups(chosen["all"])),
        "clustered": data.clustered(chosen["all"]),
        "strata": data.strata(chosen["all"]).names,
    }
    return out


def chosen_of(samples: Sequence[Sample], settings: StudySettings) -> tuple[list[int], list[int]]:
    """Positions of the images to fit heads on, and of those to measure gradients on. Raises CoritError where they are
    too few."""
    units, seed = units_of(samples, photographs=True), settings.seed
    fit, *rest = deal([s.label for s in samples], units, 3, seed)  # intervals need many units more than heads do
    measured = sorted(i for part in rest for i in part)
    fit = thin(samples, units, fit, FIT_SHARE * settings.samples, seed)
    measured = thin(samples, units, measured, settings.samples, seed)
    _check(samples, units, fit, measured)
    return fit, measured


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
    """A model ready to be measured, with its heads by random draw and state."""

    name: str
    features: _Windowed
    heads: list[dict[str, Head | FusedHead]]


def _check(samples: Sequence[Sample], units: Sequence[Hashable], fit: Sequence[int], measured: Sequence[int]) -> None:
    for name, part in (("fit heads on", fit), ("measure on", measured)):
        for label, kind in enumerate(("real", "fake")):
            if len({units[i] for i in part if samples[i].label == label}) < FEWEST_UNITS:
                raise CoritError(
                    f"the share of the images to {name} ({len(part)}) has fewer than {FEWEST_UNITS} independent {kind} "
                    "ones, where those of one source or video may count as one: give more, or more --samples"
                )


def _measure(
    out: Study,
    models: Sequence[_Prepared],
    data: Measured,
    settings: StudySettings,
    state: str,
    subset: str,
    positions: Sequence[int],
    progress: Progress,
) -> None:
    """Add to ``out`` what the models' gradients say at one head state on one subset."""
    found: dict[str, dict[Layer, list[Moments]]] = {}
    weights = dict(enumerate(data.strata(positions).weights))
    for model in models:
        layers: dict[Layer, list[Moments]] = defaultdict(list)
        heads = [drawn[state] for drawn in model.heads if state in drawn]
        for number, head in enumerate(heads, 1):
            title = f"{model.name}, {state} head" + (f" {number}" if len(heads) > 1 else "")
            gradients = measure(
                model.features,
                head,
                data.batches(positions),
                advance=progress(title + (f", {subset}" if settings.by else ""), len(positions)),
                layers=_tracked(settings),
                windows=len(model.features.readers[0].windows),
                weights=weights,
            )
            if number == 1:
                out.losses[model.name, state, subset] = gradients.loss
            for key, moments in _moments(gradients, settings).items():
                layers[key].append(moments)
        found[model.name] = layers
    out.add(state, subset, found, data.clustered(positions))


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
