"""Scores that other detectors gave the same images, read from CSV files and compared in pairs."""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from corit_cli import metrics
from corit_cli.data.manifest import Sample
from corit_cli.data.splits import units_of
from corit_cli.detection.scores import Scored
from corit_cli.errors import CoritError
from corit_cli.evaluation.figures import RANKING, rankings, rates
from corit_cli.evaluation.groups import comparable
from corit_cli.metrics.intervals import Estimate
from corit_cli.metrics.resampling import Sampled
from corit_cli.texts import uncell

_SCORE = ("score", "probability")
_VERDICTS = ("real", "fake", "uncertain")


@dataclass(frozen=True)
class Scores:
    """One peer's file matched to ``samples``: ``scores`` (n,), NaN where it has none, and ``verdicts`` (n,) or None.

    ``unknown`` counts rows of the file that belong to none of the samples.
    """

    name: str
    samples: Sequence[Sample]
    scores: NDArray[np.float64]
    verdicts: NDArray[np.str_] | None
    unknown: int


@dataclass(frozen=True)
class Peer:
    """A peer beside the detector, on the ``images`` that both have scored.

    Attributes:
        missing: images that the peer has no score for.
        ours, theirs: ranking figures, and for the peer rates at ``threshold`` where it has one.
        threshold: where its rates come from: "its own verdicts", "0.5", or "" (no rates).
        difference: AUC of the detector minus that of the peer, paired; ``mean_difference`` is the same for the mean
            AUC of ``groups``.
    """

    name: str
    images: int
    missing: int
    unknown: int
    ours: dict[str, Estimate]
    theirs: dict[str, Estimate]
    threshold: str
    difference: Estimate
    groups: list[str]
    ours_mean: Estimate
    theirs_mean: Estimate
    mean_difference: Estimate


def read_peer(file: Path, samples: Sequence[Sample], data: Path) -> Scores:
    """Read a CSV with the columns path and score (or probability), perhaps verdict; a higher score means fake.

    Rows belong to samples as :func:`match` says, from the folders of the CSV and of ``data``. Raises CoritError when
    the file cannot be understood, no row belongs to any sample, or one could belong to several.
    """
    rows = _rows(file)
    owner = match([row["path"] for row in rows], samples, (file.parent, data if data.is_dir() else data.parent))
    scores = np.full(len(samples), np.nan)
    verdicts = np.full(len(samples), "", dtype="<U9")
    for i, row in enumerate(rows):
        if i in owner:
            scores[owner[i]] = float(row["score"])
            verdicts[owner[i]] = row["verdict"]
    if not owner:
        raise CoritError(f"{file}: none of its {len(rows)} paths is among the images ({rows[0]['path']}, for example)")
    told = np.isin(verdicts[~np.isnan(scores)], _VERDICTS).all()
    return Scores(file.stem, samples, scores, verdicts if told else None, len(rows) - len(owner))


def _rows(file: Path) -> list[dict[str, str]]:
    """path, score (nan where it is blank) and verdict of each row."""
    rows = []
    try:
        with file.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as lines:
            reader = csv.DictReader(lines)
            names = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
            column = next((names[name] for name in _SCORE if name in names), None)
            if "path" not in names or column is None:
                raise CoritError(f"{file} needs a header with the columns path and score")
            for row in reader:
                path, score = ((row[name] or "").strip() for name in (names["path"], column))
                path = uncell(path)
                if not path:
                    continue
                score = score or "nan"
                try:
                    float(score)
                except ValueError:
                    raise CoritError(f"{file} line {reader.line_num}: the score {score!r} is not a number") from None
                verdict = (row.get(names.get("verdict", "")) or "").strip().lower()
                rows.append({"path": path, "score": score, "verdict": verdict})
    except FileNotFoundError:
        raise CoritError(f"{file} does not exist: --scores takes a CSV with the columns path and score") from None
    except csv.Error as error:
        raise CoritError(f"{file} is not a readable CSV: {error}") from None
    if all(np.isnan(float(row["score"])) for row in rows):
        raise CoritError(f"{file} has no scores in it")
    return rows


def match(paths: Sequence[str], samples: Sequence[Sample], folders: Sequence[Path]) -> dict[int, int]:
    """Which sample each path means: {position of the path: sample number}; a path that means none is not in it.

    Where any path is a sample's, as it stands or from one of ``folders``, all are taken at their word. Otherwise the
    images were scored in another place, and a path means the sample that it shares the longest ending with, in whole
    parts and the file's name at least; a sample that shares a longer one with another path is not meant.

    Raises CoritError when two paths name the same sample, or when an ending is shared by several of either.
    """
    known = {os.path.abspath(s.path): i for i, s in enumerate(samples)}
    owner: dict[int, int] = {}
    taken: dict[int, str] = {}
    for k, path in enumerate(paths):
        for base in (Path(), *folders):
            i = known.get(os.path.abspath(base / path.replace("\\", "/")))
            if i is None:
                continue
            if i in taken:
                raise CoritError(f"{taken[i]} and {path} are the same image: give each image one score")
            owner[k], taken[i] = i, path
            break
    return owner or _match_endings(paths, samples)


def _match_endings(paths: Sequence[str], samples: Sequence[Sample]) -> dict[int, int]:
    """The second half of :func:`match`."""
    endings, places = [_endings(path) for path in paths], [_endings(s.path.as_posix()) for s in samples]
    rows, images = _owners(endings), _owners(places)
    owner = {}
    for k, path in enumerate(paths):
        shared = [e for e in endings[k] if e in images]
        if not shared:
            continue
        longest = shared[-1]
        # An image with a longer ending in common with another path is spoken for.
        free = [i for i in images[longest] if places[i][-1] == longest or places[i][len(longest)] not in rows]
        if len(images[longest]) == len(rows[longest]) == 1:
            owner[k] = free[0]
        elif free and len(images[longest]) > 1:
            one, other = (samples[i].path for i in images[longest][:2])
            raise CoritError(f"{path} could be {one} or {other}: give paths with more of their folders")
        elif free:
            one, other = (paths[r] for r in rows[longest][:2])
            raise CoritError(f"{one} and {other} could both be {samples[free[0]].path}: give more of their folders")
    return owner


def _endings(path: str) -> list[tuple[str, ...]]:
    """The last one, two, ... parts of a path, from its end."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")][::-1]
    return [tuple(parts[: n + 1]) for n in range(len(parts))]


def _owners(endings: Sequence[Sequence[tuple[str, ...]]]) -> dict[tuple[str, ...], list[int]]:
    """Who has each ending."""
    found: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, of in enumerate(endings):
        for ending in of:
            found[ending].append(i)
    return found


def compare(scored: Scored, peer: Scores) -> Peer:
    """The detector and a peer on the images that both have scored.

    ``scored`` is of the images that the peer was matched to; those that could not be read may be missing.
    """
    at = {s.path: i for i, s in enumerate(peer.samples)}
    where = np.array([at[s.path] for s in scored.samples])  # (n,)
    kept = np.flatnonzero(~np.isnan(peer.scores[where]))
    if not len(kept):
        raise CoritError(f"{peer.name}: none of the images that could be read has a score in it")
    samples, where = [scored.samples[i] for i in kept], where[kept]
    units = units_of(samples)
    labels, scores = scored.labels[kept], {"ours": scored.logits[0, kept], "theirs": peer.scores[where]}
    found = rankings(labels, scores, units)
    ours, theirs = ({f: found[name, f].estimate for f in RANKING} for name in scores)
    verdicts, threshold = None, ""
    if peer.verdicts is not None:
        verdicts, threshold = peer.verdicts[where], "its own verdicts"
    elif scores["theirs"].min() >= 0 and scores["theirs"].max() <= 1:
        verdicts, threshold = np.where(scores["theirs"] >= 0.5, "fake", "real"), "0.5"
    if verdicts is not None:
        theirs |= rates(labels, verdicts, units)
    ours |= rates(labels, scored.verdicts[0, kept], units)
    _, groups = comparable(samples)
    of_groups = metrics.bootstrap_groups(labels, scores, groups, units)
    means = {name: Sampled.mean([of_groups[name, group] for group in groups]) for name in scores}
    return Peer(
        name=peer.name,
        images=len(kept),
        missing=len(scored.samples) - len(kept),
        unknown=peer.unknown,
        ours=ours,
        theirs=theirs,
        threshold=threshold,
        difference=(found["ours", "auc"] - found["theirs", "auc"]).estimate,
        groups=list(groups),
        ours_mean=means["ours"].estimate,
        theirs_mean=means["theirs"].estimate,
        mean_difference=(means["ours"] - means["theirs"]).estimate,
    )
