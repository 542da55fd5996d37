from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from corit_cli.data.manifest import Sample
from corit_cli.errors import CoritError
from corit_cli.evaluation.peers import compare, match, read_peer
from tests.evaluation.test_figures import scored


def at(*paths: str) -> list[Sample]:
    return [Sample(Path(path), 0) for path in paths]


def test_paths_as_they_stand_and_from_either_folder(tmp_path: Path) -> None:
    data = at(f"{tmp_path}/data/a.png", f"{tmp_path}/data/b/c.png", f"{tmp_path}/scores/d.png")
    paths = [f"{tmp_path}/data/a.png", "b\\c.png", "./d.png", "e.png"]
    assert match(paths, data, (tmp_path / "scores", tmp_path / "data")) == {0: 0, 1: 1, 2: 2}


def test_the_longest_common_ending_decides() -> None:
    data = at("/x/one/real/1.png", "/x/two/real/1.png", "/x/two/real/2.png")
    assert match(["C:\\old\\two\\real\\1.png", "./old/2.png"], data, ()) == {0: 1, 1: 2}
    assert match(["1.jpg"], data, ()) == {}


@pytest.mark.parametrize("path", ["elsewhere/real/1.png", "1.png"])
def test_an_ending_of_several_images_is_a_mistake(path: str) -> None:
    data = at("/x/one/real/1.png", "/x/two/real/1.png")
    with pytest.raises(CoritError, match=f"^{path} could be /x/one/real/1.png or /x/two/real/1.png: [^\n]*$"):
        match(["9.png", path], data, ())
    # One of the two is spoken for: still no reason to think that the other is meant.
    with pytest.raises(CoritError, match="could be"):
        match(["old/two/real/1.png", "old/three/real/1.png"], data, ())


def test_an_ending_of_several_paths_is_a_mistake() -> None:
    with pytest.raises(CoritError, match=r"^/y/c/1\.png and /y/b/1\.png could both be /x/a/1\.png: [^\n]*$"):
        match(["/y/c/1.png", "/y/b/1.png"], at("/x/a/1.png"), ())


def test_a_file_of_the_same_name_does_not_take_an_image_that_is_spoken_for() -> None:
    data = at("/x/a/1.png")
    assert match(["/x/a/1.png", "/x/b/1.png"], data, ()) == {0: 0}
    assert match(["/y/a/1.png", "/y/b/1.png"], data, ()) == {0: 0}


def test_where_one_path_is_an_image_s_all_are_taken_at_their_word() -> None:
    assert match(["/x/a/1.png", "/y/b/2.png"], at("/x/a/1.png", "/x/b/2.png"), ()) == {0: 0}


parts = st.sampled_from("ab")
tails = st.lists(st.tuples(parts, parts, parts).map("/".join), min_size=1, max_size=5, unique=True)


@given(tails, tails)
def test_a_match_is_the_longest_ending_and_no_one_else_s(paths: list[str], images: list[str]) -> None:
    def shared(path: str, image: str) -> int:
        return next((n for n in range(3) if path[::-1][2 * n] != image[::-1][2 * n]), 3)

    paths = [f"old/{path}" for path in paths]
    try:
        found = match(paths, at(*(f"/x/{image}" for image in images)), ())
    except CoritError as error:
        # Some path and some image come no closer to any other, and yet one of them has two to choose from.
        assert "\n" not in str(error)
        assert any(
            0 < shared(p, i) == max(shared(p, o) for o in images) == max(shared(o, i) for o in paths)
            and [shared(p, o) for o in images].count(shared(p, i)) + [shared(o, i) for o in paths].count(shared(p, i))
            > 2
            for p in paths
            for i in images
        )
        return
    for k, i in found.items():
        closeness = shared(paths[k], images[i])
        assert closeness > 0
        assert all(shared(paths[k], other) < closeness for other in images if other != images[i])
        assert all(shared(other, images[i]) < closeness for other in paths if other != paths[k])


def test_an_image_has_one_score() -> None:
    with pytest.raises(CoritError, match="are the same image"):
        match(["/x/1.png", "/x/./1.png"], at("/x/1.png"), ())


def write(folder: Path, text: str) -> Path:
    (folder / "peer.csv").write_text(text)
    return folder / "peer.csv"


def test_what_a_file_may_hold(tmp_path: Path) -> None:
    data = at(*(f"{tmp_path}/{i}.png" for i in range(4)))
    file = write(
        tmp_path, "\ufeffLabel,Path,Score,verdict\n1,0.png,-2.5,real\n0,1.png,,\n0,2.png,7,FAKE\n0,9.png,1,fake\n"
    )
    peer = read_peer(file, data, tmp_path)
    np.testing.assert_array_equal(peer.scores, [-2.5, np.nan, 7, np.nan])
    assert (peer.name, peer.unknown) == ("peer", 1)
    assert peer.verdicts.tolist() == ["real", "", "fake", ""]
    ours = write(tmp_path, "path,probability\n0.png,0.25\n")  # what `corit evaluate --csv` writes
    assert read_peer(ours, data, tmp_path).scores[0] == 0.25
    assert read_peer(ours, data, tmp_path).verdicts is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("path,likelihood\n0.png,1\n", "path and score"),
        ("", "path and score"),
        ("path,score\n0.png,high\n", "line 2: the score 'high'"),
        ("path,score\n", "no scores"),
        ("path,score\nother.png,1\n", "none of its 1 paths"),
    ],
)
def test_mistakes(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(CoritError, match=words):
        read_peer(write(tmp_path, text), at("0.png"), tmp_path)
    with pytest.raises(CoritError, match="does not exist"):
        read_peer(tmp_path / "nowhere.csv", at("0.png"), tmp_path)


def peer_of(tmp_path: Path, values: np.ndarray, verdict: str = "") -> Path:
    rows = [f"{i}.png,{value:.9f},{verdict}" for i, value in enumerate(values) if np.isfinite(value)]
    return write(tmp_path, "\n".join(["path,score,verdict", *rows]))


def test_a_peer_is_compared_on_common_images(tmp_path: Path) -> None:
    ours = scored()
    values = ours.logits[0] + np.random.default_rng(1).normal(size=80) * 2
    values[:5] = np.nan
    found = compare(ours, read_peer(peer_of(tmp_path, values), ours.samples, Path("data.csv")))
    assert (found.images, found.missing, found.unknown) == (75, 5, 0)
    labels = ours.labels[5:]
    one, two = roc_auc_score(labels, ours.logits[0, 5:]), roc_auc_score(labels, values[5:])
    assert found.ours["auc"].value == pytest.approx(one) and found.theirs["auc"].value == pytest.approx(two)
    assert found.difference.value == pytest.approx(one - two)
    assert found.difference.low > 0
    each = [
        roc_auc_score(labels[g], s[g])
        for s in (ours.logits[0, 5:], values[5:])
        for g in ([s.source == name for s in ours.samples[5:]] for name in "ab")
    ]
    assert found.groups == ["a", "b"]
    assert found.mean_difference.value == pytest.approx(np.mean(each[:2]) - np.mean(each[2:]))
    assert found.threshold == "" and "fpr" not in found.theirs and "fpr" in found.ours


def test_images_that_could_not_be_read_shift_no_score(tmp_path: Path) -> None:
    ours = scored()
    peer = read_peer(peer_of(tmp_path, ours.logits[0]), ours.samples, Path("data.csv"))
    rest = scored()
    rest.samples, rest.logits, rest.probabilities = rest.samples[7:], rest.logits[:, 7:], rest.probabilities[:, 7:]
    found = compare(rest, peer)
    assert (found.images, found.missing, found.difference.low, found.difference.high) == (73, 0, 0, 0)


def test_a_peer_that_scored_only_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    ours = scored()
    values = np.full(80, np.nan)
    values[:3] = 0.5
    peer = read_peer(peer_of(tmp_path, values), ours.samples, Path("data.csv"))
    ours.samples, ours.logits, ours.probabilities = ours.samples[7:], ours.logits[:, 7:], ours.probabilities[:, 7:]
    with pytest.raises(CoritError, match="none of the images that could be read"):
        compare(ours, peer)


def test_a_peer_with_our_own_scores_differs_by_nothing(tmp_path: Path) -> None:
    ours = scored()
    found = compare(ours, read_peer(peer_of(tmp_path, ours.logits[0]), ours.samples, Path("data.csv")))
    assert (found.difference.low, found.difference.high, found.mean_difference.high) == (0, 0, 0)


def test_rates_at_one_half_or_by_its_own_verdicts(tmp_path: Path) -> None:
    ours = scored()
    p = ours.probabilities[0]
    found = compare(ours, read_peer(peer_of(tmp_path, p), ours.samples, Path("data.csv")))
    assert found.threshold == "0.5"
    assert found.theirs["fpr"].value == (p[ours.labels == 0] >= 0.5).mean()
    found = compare(ours, read_peer(peer_of(tmp_path, 5 * p, "fake"), ours.samples, Path("data.csv")))
    assert found.threshold == "its own verdicts" and found.theirs["fpr"].value == 1
