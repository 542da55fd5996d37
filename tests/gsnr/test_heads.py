from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from corit_cli.data.splits import jackknife_groups
from corit_cli.errors import CoritError
from corit_cli.gsnr.heads import heads_at, initial_head, measure_heads
from corit_cli.gsnr.settings import StudySettings
from corit_cli.gsnr.study import Study
from corit_cli.metrics import gsnr
from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.model.settings import HeadKind
from corit_cli.training.head import balance_weights, fit_head, per_sample_gradients
from corit_cli.training.settings import TrainSettings
from tests.gsnr.test_layers import BASELINE, CORIT, run

ALONE = StudySettings(wrt="head", states=("initial",))


@pytest.mark.parametrize("hidden", [0, 5])
def test_a_random_head_stands_where_a_fitted_one_starts(hidden: int):
    z = torch.randn(8, 6) * 3 + 1
    head = initial_head(z, TrainSettings(seed=4, head=f"mlp:{hidden}" if hidden else "linear"))
    torch.manual_seed(4)
    fresh = Head(6, HeadKind(hidden))
    assert head(z).mean().item() == pytest.approx(0, abs=1e-6)
    assert head.kind.hidden == hidden and torch.equal(head.layers[0].weight, fresh.layers[0].weight)
    torch.testing.assert_close(head.mean, z.mean(0))
    torch.testing.assert_close(head.scale, z.std(0, correction=0))


def planted(n: int = 400, seed: int = 0) -> tuple[torch.Tensor, list[int]]:
    """Features (n, 3, d) of two layers of noise about one that tells the classes apart, and labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = [i % 2 for i in range(n)]
    z = torch.randn(n, 3, 8, generator=generator)
    z[:, 1] += torch.tensor(labels)[:, None] * 1.5
    return z, labels


def measured(
    settings: StudySettings,
    read: dict[str, torch.Tensor],
    labels: list[int],
    fit: int = 100,
    sources: list[str] | None = None,
) -> Study:
    out = Study(about={"data": {}})
    sources = sources or ["x"] * len(labels)
    fitting = labels[:fit], sources[:fit]
    own = range(len(labels) - fit)
    measure_heads(out, read, fitting, labels[fit:], own, TrainSettings(seed=settings.seed), settings, sources[fit:])
    return out


def test_gradients_are_those_written_out_for_a_linear_head():
    z, labels = planted()
    found = measured(replace(ALONE, layers=(2,)), {"corit": z}, labels).rows[0]
    head = initial_head(z[:100, 1], TrainSettings(seed=0))
    x, y = head.standardise(z[100:, 1]).double(), torch.tensor(labels[100:]).double()
    weight, bias = (p.detach().double() for p in head.layers[0].parameters())
    slope = torch.sigmoid(x @ weight[0] + bias) - y  # (n,)
    g = torch.cat([slope[:, None] * x, slope[:, None]], 1).numpy()
    moments = gsnr.Moments.of_samples(g, labels[100:], jackknife_groups(range(300), labels[100:], seed=0))
    for ours, draws in ((found.estimate, "balanced"), (found.independent, "independent")):
        expected = gsnr.estimate(moments, draws=draws)
        for name in ("value", "plugin", "low", "high", "standard_error", "signal", "noise"):
            assert getattr(ours, name) == pytest.approx(getattr(expected, name), rel=1e-4)


def test_a_planted_signal_is_found_where_it_is():
    z, labels = planted()
    noise, _ = planted(seed=1)
    noise[:, 1] = noise[:, 0]
    found = measured(ALONE, {"baseline": noise, "corit": z}, labels)
    values = {(r.model, r.layer): r.estimate for r in found.rows}
    assert values["corit", "2"].low > 0 and values["corit", "2"].value > 5 * abs(values["corit", "1"].value)
    assert [(d.model, d.layer, d.difference.low > 0) for d in found.differences] == [
        ("corit", "1", False), ("corit", "2", True), ("corit", "3", False),
    ]  # fmt: skip


def test_several_random_heads_give_a_range_and_a_fitted_one_does_not():
    z, labels = planted()
    settings = StudySettings(wrt="head", heads=4, seed=3)
    rows = measured(settings, {"corit": z}, labels).rows
    assert {(row.head, len(row.draws)) for row in rows} == {("initial", 4), ("fitted", 0)}
    for row in rows:
        assert not row.draws or (row.draws[0] == row.estimate.value and len(set(row.draws)) == 4)
    other = measured(replace(settings, heads=1, seed=4), {"corit": z}, labels).rows
    drawn = [row.draws[1] for row in rows if row.draws]
    assert drawn == pytest.approx([r.estimate.value for r in other if r.head == "initial"], rel=1e-6)  # the same head


def test_on_pure_noise_a_random_head_has_no_signal():
    def of(head: Head) -> float:
        g = per_sample_gradients(head.layers, head.standardise(z), torch.tensor(labels)).numpy()
        return gsnr.estimate(gsnr.Moments.of_samples(g, labels, jackknife_groups(range(400), labels))).value

    centred, drawn = [], []
    for seed in range(10):
        z = torch.randn(400, 64, generator=torch.Generator().manual_seed(seed))
        labels = [i % 2 for i in range(400)]
        head = initial_head(z, TrainSettings(seed=seed, head="mlp:16"))
        centred.append(of(head))
        torch.manual_seed(seed)
        head.layers = Head(64, HeadKind(16)).layers
        drawn.append(of(head))
    assert abs(np.mean(centred)) < 3 * np.std(centred) / 10**0.5 < np.mean(drawn) / 5


def test_a_fitted_head_has_less_signal_left():
    z, labels = planted()
    rows = measured(StudySettings(wrt="head", layers=(2,)), {"corit": z}, labels).rows
    assert rows[1].head == "fitted" and rows[1].estimate.value < rows[0].estimate.value / 2


def test_stages_of_a_training_are_its_epochs():
    """After E epochs the head is what a training ended there by hand has; its signal is used up on the way."""
    z, labels = planted()
    training = TrainSettings(balance="source", epochs=6)
    fit = z[:100, 1], labels[:100], ["x"] * 100
    heads = heads_at(("initial", "epoch 1", "epoch 6", "fitted"), *fit, training)
    assert list(heads) == ["initial", "epoch 1", "epoch 6", "fitted"]
    assert torch.equal(heads["epoch 6"].layers[0].weight, heads["fitted"].layers[0].weight)
    seen: list[torch.Tensor] = []
    weights = balance_weights(labels[:100], fit[2], "source")
    fit_head(fit[0], torch.tensor(fit[1]), weights, training,
             after=lambda epoch, head: seen.append(head.layers[0].weight.detach().clone()))  # fmt: skip
    assert len(seen) == 6 and torch.equal(heads["epoch 1"].layers[0].weight, seen[0])
    settings = StudySettings(wrt="head", layers=(2,), states=("initial", "epoch 1", "epoch 20", "fitted"), heads=2)
    rows = measured(settings, {"corit": z}, labels).rows
    assert [(row.head, len(row.draws)) for row in rows] == [
        ("initial", 2), ("epoch 1", 2), ("epoch 20", 2), ("fitted", 0),
    ]  # fmt: skip
    assert rows[0].estimate.value > rows[1].estimate.value > rows[2].estimate.value == rows[3].estimate.value


def test_sources_as_strata_leave_what_sources_differ_in_out_of_the_noise():
    """Sources that lie far apart drown the signal among independent draws, and not where they are strata."""
    z, labels = planted()
    sources = ["left" if i % 4 < 2 else "right" for i in range(400)]
    z[:, 1] += torch.tensor([4.0 * (source == "left") for source in sources])[:, None]
    by = {strata: measured(replace(ALONE, layers=(2,), strata=strata), {"corit": z}, labels, sources=sources).rows[0]
          for strata in ("class", "source")}  # fmt: skip
    assert by["source"].estimate.noise < 0.7 * by["class"].estimate.noise
    assert by["source"].estimate.standard_error / by["source"].estimate.value < (
        by["class"].estimate.standard_error / by["class"].estimate.value
    )
    assert by["source"].independent.noise == pytest.approx(by["class"].independent.noise, rel=0.02)


def test_every_layer_of_a_tower_has_a_head_of_its_own(tiles: Path):
    found = run(tiles, wrt="head", heads=2)
    assert {(r.model, r.layer) for r in found.rows} == {(m, str(k)) for m in ("baseline", "corit") for k in range(1, 5)}
    assert not found.proxies and not found.losses and set(found.probes) == {1, 2, 3, 4}
    assert found.about["data"]["jackknife_groups"] == 8 and found.about["data"]["clustered"]
    values = np.array([r.estimate.value for r in found.rows])
    assert np.isfinite(values).all() and len(set(values)) == len(values)
    json.dumps(found.as_dict(), allow_nan=False)
    again = run(tiles, wrt="head", heads=2)
    assert [r.draws for r in again.rows] == [r.draws for r in found.rows]


def test_a_checkpoints_head_is_left_out_with_a_note(tiles: Path):
    found = run(tiles, [BASELINE, replace(CORIT, head=FusedHead({"all": Head(16)}))], wrt="head", states=("initial",))
    assert any("left out" in note for note in found.notes)


def test_cases_that_make_no_sense(tiles: Path):
    with pytest.raises(CoritError, match="no epoch 21"):
        run(tiles, wrt="head", states=("epoch 21",))
    with pytest.raises(CoritError, match="--by"):
        StudySettings(wrt="head", by="class")
    with pytest.raises(CoritError, match="layer 0"):
        StudySettings(wrt="head", layers=(0, 7))
    with pytest.raises(CoritError, match="only the fitted head"):
        StudySettings(heads=2, states=("fitted",))
