"""``--dry-run``: what a command would read, train and write, and how long it may take. Nothing is written, no feature
kept, nothing fetched; only which precision this machine is faster with is remembered once it was measured."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from corit_cli.cli.console import escape, out, working
from corit_cli.data.kinds import sniff
from corit_cli.data.urls import is_url

if TYPE_CHECKING:
    from corit_cli.data.manifest import Sample
    from corit_cli.detection.detector import Detector
    from corit_cli.features.foresee import Cost

SAME = "each rate is that of a few images, read here and now; starting and drawing come on top"


@dataclass
class Forecast:
    """What would be read, trained and written, and the seconds that it may take by what they ``rests_on``; None where
    that cannot be told."""

    read: list[str]
    train: list[str] = field(default_factory=list)
    write: list[str] = field(default_factory=list)
    seconds: float | None = None
    rests_on: str = ""

    def show(self) -> None:
        """Print it."""
        out.print("Nothing is done (--dry-run).")
        for title, lines in (("read", self.read), ("train", self.train), ("write", self.write)):
            for line in lines or (["nothing"] if title != "train" else []):
                out.print(f"Would {title}: {escape(line)}", soft_wrap=True)
        took = "unknown" if self.seconds is None else f"about {span(self.seconds)}"
        out.print(f"May take: {took}{f' ({escape(self.rests_on)})' if self.rests_on else ''}", soft_wrap=True)


@contextmanager
def foreseeing() -> Iterator[None]:
    """Nothing is fetched meanwhile: where something would be, that is all that can be told."""
    from corit_cli.model.hub import NotCached, cache_only

    try:
        with cache_only(), working("timing"):
            yield
    except NotCached as error:
        Forecast([f"{error.what}, which is fetched first"], rests_on="it depends on what is fetched").show()
        raise typer.Exit from None


def span(seconds: float) -> str:
    """Hours, minutes and seconds."""
    return f"{seconds:.0f} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))


def cache_file(cache: Path | None, off: bool) -> Path | None:
    """Where features would be kept."""
    from corit_cli.features.cache import default_cache_path

    return None if off else cache or default_cache_path()


def counted(samples: Sequence[Sample]) -> str:
    """How many images there are of each class."""
    fake = sum(sample.label for sample in samples)
    return f"{len(samples):,} images ({len(samples) - fake:,} real, {fake:,} fake)"


def features(anew: int, cached: int) -> str:
    """How many are to be taken, and how many are there."""
    return f"features of {anew:,} images or copies of them ({cached:,} more are in the cache)"


def outputs(**files: Path | None) -> list[str]:
    """Files that were asked for, with what they are."""
    return [f"{path} ({name})" for name, path in files.items() if path is not None]


def of_detect(detector: Detector, files: Iterable[str], asked: Mapping[str, Any], write: list[str]) -> Forecast:
    """Of ``corit detect``: rates are those of a few of the images."""
    kinds: Counter[str] = Counter()
    images: list[str] = []
    size = 0
    for file in files:
        kind = None if is_url(file) else sniff(file)
        kinds["URLs" if is_url(file) else f"{kind.media}s" if kind else "files of no known kind"] += 1
        if kind is not None and kind.media == "image":
            images.append(file)
            size += Path(file).stat().st_size
    told = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items()) or "nothing"
    step = max(1, len(images) // 8)
    tried = images[::step][:8]
    seconds, rests = None, "there is no image to time"
    if tried:
        list(detector.predict(tried[:1], **asked))
        begun = time.perf_counter()
        list(detector.predict(tried, **asked))
        each = (time.perf_counter() - begun) / len(tried)
        seconds, rests = each * len(images), f"{each:.2f} s an image, timed on {len(tried)} of them here and now"
        others = kinds.total() - len(images)
        rests += f"; the other {others:,} files are not in it" if others else ""
    return Forecast([f"{told} ({size / 1e6:,.1f} MB of images)"], [], write, seconds, rests)


def of_train(samples: Sequence[Sample], cost: Cost, rows: int, heads: int, write: list[str]) -> Forecast:
    """Of ``corit train``."""
    read = [counted(samples), features(cost.to_read, cost.cached)]
    train = [f"{heads:,} heads on {rows:,} rows at most"]
    parts = [f"reading {span(cost.reading)}", f"heads {span(cost.fitting)}"]
    if cost.passes:
        train.append("parts of the backbone, with every epoch that is asked for")
        parts.append(f"tuning at most {span(cost.passes)}, a pass backwards taken for two forwards")
    return Forecast(read, train, write, cost.seconds, f"{', '.join(parts)}; {SAME}")


def of_evaluate(samples: Sequence[Sample], cost: Cost, heads: int, write: list[str]) -> Forecast:
    """Of ``corit evaluate``."""
    read = [counted(samples), features(cost.to_read, cost.cached)]
    train = [f"{heads:,} heads, without a group each"] if heads else []
    rests = f"reading {span(cost.reading)}, heads {span(cost.fitting)}, without intervals; {SAME}"
    return Forecast(read, train, write, cost.seconds, rests)


def of_sweep(used: int, images: int, cost: Cost, runs: int, more: int, write: list[str]) -> Forecast:
    """Of ``corit cor-sweep``."""
    read = [f"{used:,} of {images:,} images, {cost.to_read:,} of their features anew"]
    train = [f"{runs:,} runs that are not kept yet, and at most {more:,} more around a cliff"]
    rests = f"for {runs:,} runs, from one epoch on few images or random features, here and now"
    return Forecast(read, train, write, cost.seconds, rests)


def of_study(cost: Cost, images: int, backwards: int, write: list[str]) -> Forecast:
    """Of ``corit gsnr``."""
    read = [f"{images:,} images at most, {cost.to_read:,} of their class tokens anew"]
    rests = f"{backwards:,} passes backwards, each taken for two forwards; {SAME}"
    return Forecast(read, [], write, cost.seconds, rests)
