"""What a study of gradients would cost, without it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from corit_cli.data.manifest import Sample
from corit_cli.data.settings import CropConfig
from corit_cli.features.cache import Job
from corit_cli.features.extractor import Extractor
from corit_cli.features.foresee import BACKWARDS, Cost, lacking, seconds_each
from corit_cli.gsnr.layers import chosen_of
from corit_cli.gsnr.settings import StudySettings
from corit_cli.gsnr.study import Compared
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings


def foresee(
    samples: Sequence[Sample],
    backbone: Backbone,
    models: Sequence[Compared],
    crops: CropConfig,
    settings: StudySettings,
    device: str,
    cache: Path | None,
) -> tuple[Cost, int, int]:
    """As :func:`~corit_cli.gsnr.layers.study` takes it, with features kept in ``cache``; how many images
    there are, and passes backwards."""
    fit, measured = chosen_of(samples, settings)
    jobs = [Job(samples[i].path) for i in fit + measured]
    images = len(jobs)
    depth = backbone.tower.config.layers
    tower = CoRITSettings(views=(), cgp=(), inject_at=(), integrate=tuple(range(1, depth + 1)))
    extractor = Extractor(backbone, tower, crops, device)
    missing, each = lacking(extractor, jobs, cache), seconds_each(extractor, jobs)
    forwards = backwards = 0
    for model in models:
        passes = 1 + len(model.settings.views) if model.settings.contrasted else 1
        forwards += (passes - 1) * images
        if settings.wrt != "head":
            states = sum(len(settings.states_of(draw)) for draw in range(settings.heads))
            turns = states * (2 if settings.by else 1) * len(measured)
            backwards += turns
            forwards += turns * (passes + BACKWARDS)
    cost = Cost(len(missing), len(set(jobs)) - len(missing), len(missing) * each, passes=forwards * each)
    return cost, images, backwards
