"""A sweep over SAM's radius: which runs are needed, which are kept from before, and what they say together.

Every model (an *arm*) is trained on the same images with the same seeds and radii, with two controls: radius 0 must
not collapse, and shuffled labels must. A coarse grid comes first, then radii around the cliff where there is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from corit_cli.cor.collapse import COR, Criteria, Run, critical_radius, rounded
from corit_cli.errors import CoritError
from corit_cli.files import write_atomically
from corit_cli.progress import Progress, quiet

#: A bracket around the cliff is refined until its ends are this close, in so many steps at most.
CLOSE, ROUNDS = 1.4, 3
#: ``extend`` doubles the largest radius until it reaches this.
FARTHEST = 64.0

#: A run that is wanted: radius, seed, and whether the labels are shuffled.
Wanted = tuple[float, int, bool]


class Arm(Protocol):
    """A model that can be trained with a radius and a seed."""

    name: str

    def run(self, wanted: Sequence[Wanted]) -> Iterator[Run]:
        """Train every wanted run; yield each as it is finished."""
        ...


#: What makes an arm ready, telling how far it is.
MakeArm = Callable[[Progress], Arm]


class Journal:
    """Finished runs, one line of JSON each in ``folder/runs.jsonl``, so that an interrupted sweep goes on from them.

    ``settings`` is all that the runs depend on. Raises CoritError when the folder holds another sweep's runs.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder = folder
        self._file = folder / "runs.jsonl"
        self.runs: dict[tuple, Run] = {}
        told = json.loads(json.dumps(settings))
        about = folder / "sweep.json"
        folder.mkdir(parents=True, exist_ok=True)
        if about.exists() or self._file.exists():
            kept = _read_json(about)
            differing = sorted(k for k in {*kept, *told} if kept.get(k) != told.get(k))
            if differing:
                raise CoritError(f"{folder} holds runs of another sweep ({', '.join(differing)} differ): name another")
            for line in self._file.read_text().splitlines() if self._file.exists() else ():
                try:
                    row = json.loads(line)
                    run = Run(**{k: float("nan") if v is None else v for k, v in row.items()})
                except (ValueError, TypeError, AttributeError):
                    continue  # a line that was cut off is a run to do again
                self.runs[run.key] = run
        else:
            write_atomically(about, lambda path: path.write_text(json.dumps(told, indent=1)))

    def add(self, run: Run) -> None:
        """Keep a run, on disk before this returns."""
        self.runs[run.key] = run
        row = {k: None if isinstance(v, float) and not np.isfinite(v) else v for k, v in asdict(run).items()}
        line = json.dumps(row, allow_nan=False)
        whole = not self._file.exists() or self._file.read_bytes()[-1:] in (b"", b"\n")
        with self._file.open("a") as file:
            file.write(("" if whole else "\n") + line + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read_json(path: Path) -> dict[str, Any]:
    try:
        kept = json.loads(path.read_text())
        if isinstance(kept, dict):
            return kept
    except (ValueError, FileNotFoundError):
        pass
    raise CoritError(
        f"{path} does not say which sweep the runs beside it belong to: delete the folder, or name another"
    )


@dataclass(frozen=True)
class Found:
    """What is known of one arm: its runs, its critical radius, and what the controls did."""

    name: str
    runs: list[Run]
    cor: COR
    learns_without_sam: bool | None
    learns_when_shuffled: bool | None


@dataclass
class Sweep:
    """The outcome of :func:`sweep`, complete or not: tests, and what was found by arm."""

    tests: Criteria
    found: dict[str, Found] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, runs with their outcomes; some may not be finite."""
        return {
            "tests": asdict(self.tests),
            "found": {
                name: {
                    "cor": f.cor.as_dict(),
                    "learns_without_sam": f.learns_without_sam,
                    "learns_when_shuffled": f.learns_when_shuffled,
                    "runs": [asdict(r) | {"outcome": self.tests.outcome(r)} for r in f.runs],
                }
                for name, f in self.found.items()
            },
            "warnings": self.warnings(),
        }

    def warnings(self) -> list[str]:
        """In words, what should make a reader careful."""
        said = []
        for f in self.found.values():
            if f.learns_without_sam is False:
                said.append(f"{f.name} does not learn even without SAM: its critical radius says nothing")
            if f.learns_when_shuffled:
                said.append(f"{f.name} scores above chance after training on shuffled labels: look for leaks")
            diverged = sum(s.diverged for s in f.cor.shares)
            if diverged:
                said.append(f"{f.name}: {diverged} runs diverged; they count as neither trained nor collapsed")
        return said


def sweep(
    arms: Mapping[str, MakeArm],
    radii: Sequence[float],
    seeds: Sequence[int],
    tests: Criteria,
    journal: Journal,
    refine: bool = True,
    extend: bool = False,
    progress: Progress = quiet,
    tell: Callable[[Run], None] = lambda run: None,
) -> Sweep:
    """Run what the sweep needs and is not in the journal; ``tell`` is told of every run, kept ones too.

    One arm comes after the other, each made for the first of its runs that is missing and let go after the last.
    """
    runs: list[Run] = []
    for name, make in arms.items():
        one = _Asked(name, cache(partial(make, progress)), journal, progress, tell)
        controls = [(0.0, seed, shuffled) for shuffled in (False, True) for seed in seeds]
        one.need(controls + [(rho, seed, False) for rho in radii for seed in seeds])
        top = max(radii)
        while extend and top * 2 <= FARTHEST and one.radius(tests).side == "above":
            top *= 2
            one.need([(top, seed, False) for seed in seeds])
        for _ in range(ROUNDS if refine else 0):
            ends = one.radius(tests).bracket
            if ends is None or ends[1] / ends[0] <= CLOSE:
                break
            between = [rounded(float(r)) for r in np.geomspace(*ends, 4)[1:3]]
            one.need([(rho, seed, False) for rho in between for seed in seeds])
        runs += one.runs.values()
    return summary(runs, tests)


@dataclass
class _Asked:
    """An arm's runs that a sweep asked for, from its journal or trained for it.

    The radius is told from these, not from all that are kept: a resumed sweep takes the same way as the first.
    """

    name: str
    arm: Callable[[], Arm]
    journal: Journal
    progress: Progress
    tell: Callable[[Run], None]
    runs: dict[tuple, Run] = field(default_factory=dict)

    def need(self, wanted: Iterable[Wanted]) -> None:
        keys = {(self.name, *w): w for w in wanted}
        missing = [w for key, w in keys.items() if key not in self.journal.runs]
        for key in keys:
            if key in self.journal.runs:
                self.tell(self.journal.runs[key])
        if missing:
            arm = self.arm()
            advance = self.progress(f"{self.name}: runs", len(missing))
            for run in arm.run(missing):
                self.journal.add(run)
                self.tell(run)
                advance()
        self.runs |= {key: self.journal.runs[key] for key in keys}

    def radius(self, tests: Criteria) -> COR:
        return critical_radius(self.runs.values(), tests)


def summary(runs: Iterable[Run], tests: Criteria) -> Sweep:
    """What runs say, model by model; models without a run at any radius are left out."""
    out, every = Sweep(tests), list(runs)
    for name in dict.fromkeys(r.model for r in every):
        own = sorted((r for r in every if r.model == name), key=lambda r: (r.shuffled, r.rho, r.seed))
        if any(r.rho > 0 for r in own):
            out.found[name] = Found(
                name,
                own,
                critical_radius(own, tests),
                _mostly("trained", [r for r in own if r.rho == 0 and not r.shuffled], tests),
                _mostly("trained", [r for r in own if r.shuffled], tests),
            )
    return out


def _mostly(outcome: str, runs: Sequence[Run], tests: Criteria) -> bool | None:
    """Whether more than half of the runs came out so; None without runs."""
    return sum(tests.outcome(r) == outcome for r in runs) > len(runs) / 2 if runs else None
