from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.data.splits import jackknife_groups
from corit_cli.data.windows import crop
from corit_cli.errors import CoritError
from corit_cli.features.cache import Job, extract
from corit_cli.features.extractor import Extractor
from corit_cli.gsnr import layers
from corit_cli.gsnr.gradients import layer_of
from corit_cli.gsnr.layers import study
from corit_cli.gsnr.settings import StudySettings, parse_all, parse_states
from corit_cli.gsnr.study import Compared, Study
from corit_cli.metrics import gsnr
from corit_cli.model.corit import CoRIT, Reading
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.loading import Backbone
from corit_cli.model.settings import CoRITSettings, baseline
from corit_cli.progress import quiet
from tests.conftest import Told, make_tiles, random_tower
from tests.gsnr.test_per_sample import gradients_one_by_one

READS = CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(1,), integrate=(2, 3))
BASELINE, CORIT = Compared("baseline", baseline(4)), Compared("corit", READS)
CROPS = CropConfig("native", 32)


def run(data: Path | list[Sample], models=(BASELINE, CORIT), crops=CROPS, progress=quiet, **settings) -> Study:
    samples = load_samples(data) if isinstance(data, Path) else data
    settings = StudySettings(**{"samples": 24} | settings)
    return study(samples, Backbone(random_tower(), "tiny", "0" * 64), models, crops, settings, progress=progress)


@pytest.fixture(scope="module")
def found(tiles: Path) -> Study:
    return run(tiles)


def test_every_layer_of_every_model_at_both_states(found: Study):
    rows = Counter((r.model, r.head) for r in found.rows)
    assert rows == {(m, h): n for m, n in (("baseline", 6), ("corit", 5)) for h in ("initial", "fitted")}
    assert [r.layer for r in found.rows[:6]] == ["0", "1", "2", "3", "4", "head"]
    assert Counter(d.head for d in found.differences) == {"initial": 5, "fitted": 5}
    values = {(r.model, r.head, r.layer): r.estimate.value for r in found.rows}
    for d in found.differences:
        expected = values["corit", d.head, d.layer] - values["baseline", d.head, d.layer]
        assert d.difference.value == pytest.approx(expected)
    assert set(found.probes) == {1, 2, 3, 4} and set(found.proxies) == {"corit"}
    assert found.losses["corit", "fitted", "all"] < found.losses["corit", "initial", "all"]
    assert found.about["data"] == found.about["data"] | {"fit": 16, "measured": 24, "measured_fakes": 12}
    assert found.about["data"]["clustered"] and found.about["data"]["jackknife_groups"] == 8


def test_the_same_as_from_explicit_gradients_of_images_the_head_never_saw(tiles: Path, monkeypatch):
    asked: list[list[Path]] = []
    extract = layers.extract

    def listening(extractor, jobs, *rest):
        asked.append([job.path for job in jobs])
        return extract(extractor, jobs, *rest)

    monkeypatch.setattr(layers, "extract", listening)
    torch.manual_seed(0)
    head = Head(CoRIT(random_tower(), READS).width)
    both = CropConfig("both", 32)
    result = run(tiles, [Compared("corit", READS, FusedHead({"all": head}))], both, samples=12, states=("fitted",))
    fit = asked[1]
    measured = [s for s in load_samples(tiles) if s.path in asked[0] and s.path not in fit]
    assert len(fit) == 12 and len(measured) == 12
    assert not {s.source for s in load_samples(tiles) if s.path in fit} & {s.source for s in measured}

    tower = random_tower()
    resized, native = CoRIT(tower, replace(READS, cgp=())), CoRIT(tower, replace(READS, integrate=()))

    class Windows:
        """Class tokens of the resized window, contrasts of the native one; images (b, 2, 3, S, S)."""

        def __init__(self):
            self.tower = tower

        def __call__(self, images):
            return Reading(torch.cat([resized(images[:, 0]).z, native(images[:, 1]).z], 1))

    corit = Windows()
    windows = np.stack([crop(read_image(s.path), both) for s in measured])
    images = torch.from_numpy(windows).permute(0, 1, 4, 2, 3).float() / 255
    labels = torch.tensor([s.label for s in measured])
    oracle = gradients_one_by_one(corit, head, images, labels)
    groups = jackknife_groups([s.source for s in measured], labels.tolist(), seed=0)
    for row in result.rows:
        g = torch.cat([x.flatten(1) for name, x in oracle.items() if layer_of(name) == row.layer], 1).double()
        moments = gsnr.Moments.of_samples(g.numpy(), labels.numpy(), groups)
        expected = gsnr.estimate(moments, clustered=True)
        assert row.estimate.value == pytest.approx(expected.value, rel=1e-3, abs=1e-6)
        assert (row.estimate.low, row.estimate.high) == pytest.approx((expected.low, expected.high), rel=2e-2, abs=1e-5)
    assert "checkpoint" in result.notes[0]


def test_a_model_without_contrasts_may_read_more_than_class_tokens(tiles: Path):
    spread = replace(READS, cgp=(), inject_at=(), spread=(2,))
    native = replace(READS, cgp=(), inject_at=(), native=(2,))
    for reads, crops in ((spread, CROPS), (native, CropConfig("both", 32))):
        found = run(tiles, (Compared("corit", reads),), crops, states=("initial", "fitted"))
        assert found.losses["corit", "fitted", "all"] < found.losses["corit", "initial", "all"]
    assert run(tiles, (Compared("corit", spread),), wrt="head").rows


def test_heads_are_fitted_to_what_an_injected_tower_reads(tiles: Path, monkeypatch):
    reads, seen = replace(READS, cgp=()), []
    fitted = layers.heads_at
    monkeypatch.setattr(layers, "heads_at", lambda wanted, z, *rest: (seen.append(z), fitted(wanted, z, *rest))[1])
    run(tiles, (Compared("corit", reads),))
    samples = load_samples(tiles)
    fit, _ = layers.chosen_of(samples, StudySettings(samples=24))
    own = Extractor(Backbone(random_tower(), "tiny", "0" * 64), reads, CROPS)
    torch.testing.assert_close(seen[0], extract(own, [Job(samples[i].path) for i in fit])[0])


def test_the_same_study_gives_the_same_bytes(tiles: Path):
    options = {"samples": 12, "states": ("initial",), "layers": (1,)}
    first, again, other = (
        json.dumps(run(tiles, **options, seed=seed).as_dict(), allow_nan=False) for seed in (0, 0, 1)
    )
    assert first == again
    assert json.loads(first)["data"]["fingerprint"] != json.loads(other)["data"]["fingerprint"]
    assert json.loads(first)["backbone"]["sha256"] == "0" * 64


def test_chosen_layers_and_tokens(tiles: Path, found: Study):
    options = {"states": ("fitted",), "models": [CORIT]}
    some = run(tiles, **options, layers=(1, 3)).rows
    assert [r.layer for r in some] == ["1", "3"]
    expected = {r.layer: r.estimate.value for r in found.rows if (r.model, r.head) == ("corit", "fitted")}
    assert [r.estimate.value for r in some] == pytest.approx([expected["1"], expected["3"]], rel=1e-4)
    tokens = run(tiles, **options, wrt="tokens").rows
    assert [(r.part, r.layer) for r in tokens] == [
        *(("cls", str(layer)) for layer in range(4)),
        *(("patches", str(layer)) for layer in range(3)),  # of layer 3 only the class token is read
    ]


def test_every_stage_is_told_of_to_its_end(tiles: Path):
    told = Told()
    run(tiles, progress=told, samples=12, states=("initial",))
    assert told.complete and {title for title, *_ in told.stages} >= {"class tokens", "corit: features", "corit: proxy"}


def test_by_class_measures_each_class_too(tiles: Path):
    result = run(tiles, by="class", states=("fitted",), models=[BASELINE])
    assert list(dict.fromkeys(r.subset for r in result.rows)) == ["all", "real", "fake"]
    sizes = {r.subset: r.estimate.n for r in result.rows}
    assert sizes == {"all": 24, "real": 12, "fake": 12}
    assert not result.notes


def test_by_source_leaves_out_what_is_too_small(dataset: Path, tiles: Path):
    result = run(dataset, by="source", states=("initial",), models=[BASELINE], samples=48)
    assert set(r.subset for r in result.rows) == {"all", *(f"source{i}" for i in range(4))}
    assert not result.about["data"]["clustered"]
    result = run(tiles, by="source", states=("initial",), models=[BASELINE])
    assert {r.subset for r in result.rows} == {"all"} and "photo" in result.notes[0]


def test_unreadable_files_are_left_out_and_named(tmp_path: Path):
    data = make_tiles(tmp_path)
    samples = load_samples(data)
    samples[5].path.write_bytes(b"not an image")
    result = run(data, states=("initial",), models=[BASELINE])
    assert [s.path for s, _ in result.left_out] == [samples[5].path]
    counts = result.about["data"]
    assert counts["fit"] + counts["measured"] == 39


def test_mistakes_are_named(tiles: Path):
    with pytest.raises(CoritError, match=r"layers 0 .* to 4"):
        run(tiles, layers=(5,))
    with pytest.raises(CoritError, match="no gradient reaches"):
        run(tiles, [CORIT], layers=(4,), samples=6)
    with pytest.raises(CoritError, match=r"fewer than 3 independent fake ones, .* more --samples"):
        run([s for s in load_samples(tiles) if s.label == 0])
    for wrong, message in (
        ({"samples": 4}, "samples must be at least 6"),
        ({"wrt": "pixels"}, "wrt must be params, tokens or head"),
        ({"by": "day"}, "by must be one of"),
        ({"states": ("half",)}, "states must be of"),
        ({"strata": "day"}, "strata must be class or source"),
    ):
        with pytest.raises(CoritError, match=message):
            StudySettings(**wrong)


def test_spellings_of_the_command_line():
    assert (parse_all("all"), parse_all("0,3-4")) == (None, (0, 3, 4))
    assert [parse_states(text) for text in ("init", "fitted", "both")] == [
        ("initial",),
        ("fitted",),
        ("initial", "fitted"),
    ]
    assert parse_states("fitted,5,2,init") == ("initial", "epoch 2", "epoch 5", "fitted")
    assert parse_states("0,1,init") == ("initial", "epoch 1")
    for wrong in ("half", "1,", "1.5", "-1"):
        with pytest.raises(CoritError, match="--head-state takes"):
            parse_states(wrong)


def test_several_random_heads_are_measured_each_as_by_itself(tiles: Path):
    options = {"samples": 12, "layers": (1, 2), "states": ("initial", "epoch 2", "fitted")}
    for wrt in ("params", "tokens"):
        both = run(tiles, **options, wrt=wrt, heads=2, seed=3)
        first = run(tiles, **options, wrt=wrt, seed=3)
        values = [row.draws[0] if row.draws else row.estimate.value for row in both.rows]
        assert values == pytest.approx([row.estimate.value for row in first.rows])
        assert {(row.head, len(row.draws)) for row in both.rows} == {("initial", 2), ("epoch 2", 2), ("fitted", 0)}
        drawn = {(r.model, r.head, r.part, r.layer): r.draws for r in both.rows if r.draws}
        assert all(first != second for first, second in drawn.values())
        for d in both.differences:
            own, others = (drawn.get((name, d.head, d.part, d.layer), ()) for name in (d.model, d.reference))
            assert d.draws == pytest.approx([a - b for a, b in zip(own, others, strict=True)])
        document = both.as_dict()["gsnr"][0]
        assert document["draws_mean"] == pytest.approx(np.mean(document["draws"]))
        assert document["draws_sd"] == pytest.approx(np.std(document["draws"], ddof=1))


def test_sources_as_strata_on_images(dataset: Path, tiles: Path):
    by = {
        strata: run(dataset, models=[BASELINE], samples=32, states=("initial",), strata=strata, layers=(2,))
        for strata in ("class", "source")
    }
    assert by["class"].about["data"]["strata"] == ["real: all", "fake: all"]
    names = by["source"].about["data"]["strata"]
    assert len(names) == 8 and names[:2] == ["real: source0", "real: source1"]
    values = [by[strata].rows[0].estimate for strata in by]
    assert values[0].n == values[1].n and values[0].value != values[1].value
    # Photographs are one unit each, too few for a stratum, so that only the classes are left.
    small = [run(tiles, models=[BASELINE], samples=12, states=("initial",), strata=s, layers=(2,)) for s in by]
    assert small[1].about["data"]["strata"] == ["real: small sources", "fake: small sources"]
    assert [r.estimate for r in small[0].rows] == [r.estimate for r in small[1].rows]


def test_a_checkpoints_head_has_no_epochs(tiles: Path):
    with pytest.raises(CoritError, match="fitted already"):
        run(tiles, [replace(CORIT, head=FusedHead({"all": Head(16)}))], states=("epoch 1",))


def test_what_tells_degraded_pictures_has_no_part(tiles: Path):
    torch.manual_seed(0)
    width = CoRIT(random_tower(), READS).width
    plain = FusedHead({"all": Head(width)})
    aware = FusedHead(dict(plain.heads), Head(width))
    aware.degraded_weights *= 5
    found = [
        run(tiles, [Compared("corit", READS, head)], samples=12, states=("fitted",)).rows for head in (plain, aware)
    ]
    assert [row.estimate for row in found[0]] == [row.estimate for row in found[1]]
