from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.cor.problem import Problem, apart
from corit_cli.cor.settings import Optimization
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.errors import CoritError
from corit_cli.model.loading import Backbone
from corit_cli.model.scope import Scope
from corit_cli.model.settings import CoRITSettings
from tests.conftest import make_tiles, random_tower

CROPS = CropConfig("native", 32)
READS = CoRITSettings(views=(), cgp=(), integrate=(2, 3))


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    monkeypatch.setenv("CORIT_CACHE", str(tmp_path / "features.sqlite"))
    make_tiles(tmp_path / "tiles")
    return load_samples(tmp_path / "tiles/manifest.csv")


def problem(samples: list[Sample], crops: CropConfig = CROPS, most: int = 400, **options: object) -> Problem:
    return Problem(samples, Backbone(random_tower(), "tiny", "0" * 64), crops, Optimization(), most, **options)


def test_no_photograph_is_on_both_sides(samples: list[Sample]) -> None:
    made = problem(samples)
    made.features(READS)
    sides = [{samples[made.used[k]].source for k in side.tolist()} for side in (made.split.train, made.split.val)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(made.used) == len(samples) == len(made)
    assert [made.split.labels[k] for k in range(len(samples))] == [samples[i].label for i in made.used]


def test_at_most_so_many_are_used_and_no_test_images(samples: list[Sample]) -> None:
    assert len(problem(samples, most=24)) <= 24
    held_out = [replace(s, split="test") if s.source == samples[0].source else s for s in samples]
    made = problem(held_out)
    made.features(READS)
    assert samples[0].source not in {made.samples[i].source for i in made.used}


def test_heads_and_tuned_towers_read_the_same_features(samples: list[Sample]) -> None:
    made = problem(samples)
    arm = made.arm("tuned", READS, Scope("last", 1))
    z = arm.tuned(arm.prepared, torch.arange(len(made.used)))
    torch.testing.assert_close(made.features(READS), z.detach(), atol=1e-5, rtol=1e-5)


def test_a_backbone_is_let_go_where_blocks_are_tuned_and_loaded_anew(samples: list[Sample]) -> None:
    loads = []

    def load() -> Backbone:
        loads.append(weakref.ref(tower := random_tower()))
        return Backbone(tower, "tiny", "0" * 64)

    made = Problem(samples, load(), CROPS, Optimization(epochs=1), 40, load=load)
    made.check(READS, Scope("last", 1))
    first = made.arm("first", READS, Scope("last", 1))
    assert len(loads) == 1 and loads[0]() is None  # the tower is gone, and what the arm has of it
    assert [bool(list(b.parameters())) for b in first.tuned.corit.tower.blocks] == [False, False, True, False]
    second = made.arm("second", READS, Scope("last", 1))
    assert len(loads) == 2
    wanted = [(0.05, 0, False)]
    (run,), (again,) = first.run(wanted), second.run(wanted)
    plain = problem(samples, most=40)
    kept = plain.backbone
    (other,) = replace(plain.arm("first", READS, Scope("last", 1)), optimization=Optimization(epochs=1)).run(wanted)
    assert run == replace(again, model="first") == other
    assert plain.backbone is kept  # which it could not load anew
    made.arm("ln", READS, Scope("ln"))
    made.arm("head", READS, Scope("head"))
    assert len(loads) == 3 and loads[2]() is not None  # both go on with all of it


def test_other_weights_are_not_gone_on_with(samples: list[Sample]) -> None:
    towers = [Backbone(random_tower(), "tiny", "0" * 64), Backbone(random_tower(), "tiny", "1" * 64)]
    made = Problem(samples, towers[0], CROPS, Optimization(epochs=1), 40, load=lambda: towers[1])
    made.arm("first", READS, Scope("last", 1))
    with pytest.raises(CoritError, match="the backbone tiny has other weights than when the sweep began"):
        made.arm("second", READS, Scope("last", 1))


def test_an_unreadable_file_is_told_of_once_and_left_out_of_both(samples: list[Sample]) -> None:
    samples[5].path.write_text("no picture")
    told: list[str] = []
    made = problem(samples, warn=told.append)
    assert len(made.features(READS)) == len(made.windows) == len(samples) - 1
    assert len(told) == 1 and str(samples[5].path) in told[0]
    assert 5 not in made.used and len(made.split.labels) == len(samples) - 1


def test_what_is_in_the_files_is_part_of_the_digest(samples: list[Sample]) -> None:
    first = problem(samples)
    first.features(READS)
    before = first.about
    samples[0].path.write_bytes(samples[2].path.read_bytes())
    second = problem(samples)
    second.features(READS)
    assert before["fingerprint"] != second.about["fingerprint"]
    assert before | {"fingerprint": ""} == second.about | {"fingerprint": ""}


def test_nonsense_is_refused(samples: list[Sample]) -> None:
    with pytest.raises(CoritError, match="one kind of window"):
        problem(samples, CropConfig("both", 32))
    with pytest.raises(CoritError, match="leave out --crops"):
        problem(samples, CropConfig("native", 32, 2)).arm("m", READS, Scope("last", 1))
    one_class_each = [replace(s, video_id="") for s in samples if s.label == int(s.source[-1]) % 2]
    with pytest.raises(CoritError, match="too few independent images to validate on, 3 real and 3 fake"):
        problem(one_class_each).check(READS, Scope("last", 1))
    with pytest.raises(CoritError, match="too few images"):
        problem([s for s in samples if s.label == 0])


@given(
    rows=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1)), min_size=1, max_size=120), size=st.integers(2, 20)
)
def test_batches_share_no_unit_and_have_as_many_of_either_class(rows: list[tuple[int, int]], size: int) -> None:
    units, labels = ([row[k] for row in rows] for k in (0, 1))
    homes_of = [len({u for u, label in rows if label == c}) for c in (0, 1)]
    try:
        batches = apart(units, labels, size)
    except ValueError as error:
        assert "too few" in str(error) and min(homes_of) < 2 * 16
        return
    assert 3 <= len(batches) <= 16 and len({len(batch) for batch in batches}) == 1 and 2 <= len(batches[0]) <= size
    assert all(2 * sum(labels[i] for i in batch) == len(batch) for batch in batches)
    homes = [{units[i] for i in batch} for batch in batches]
    assert sum(map(len, homes)) == len(set().union(*homes))
    assert len({i for batch in batches for i in batch}) == sum(map(len, batches))


def test_batches_come_from_all_over_a_manifest_that_is_in_order_of_sources() -> None:
    batches = apart(list(range(1000)), [k % 2 for k in range(1000)], 16)
    used = [sum(k // 250 == quarter for batch in batches for k in batch) for quarter in range(4)]
    assert len(batches) == 16 and sum(used) == 256 and min(used) > 40
