"""Numbers and texts as people read them."""

from __future__ import annotations


def percent(probability: float) -> str:
    """A probability with one decimal; never quite 0% or 100%."""
    if probability < 0.0005:
        return "<0.1%"
    return ">99.9%" if probability >= 0.9995 else f"{probability:.1%}"


def share(rate: float) -> str:
    """A measured rate with two digits."""
    return f"{rate:.1%}" if rate < 0.0995 else f"{rate:.0%}"


def at(fraction: float) -> str:
    """A place along an axis as CSS and SVG write it, kept inside."""
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}%"


def clock(seconds: float) -> str:
    """A time stamp: 0:07.4, 12:30.0, 1:02:03.5."""
    tenths = round(10 * max(seconds, 0.0))
    minutes, tenths = divmod(tenths, 600)
    rest = f"{minutes % 60:02d}:{tenths / 10:04.1f}"
    return f"{minutes // 60}:{rest}" if minutes >= 60 else rest.removeprefix("0")


def file_size(count: int) -> str:
    """Bytes exactly, and rounded beside where that is easier to read."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= unit:
            return f"{count:,} bytes ({count / unit:.1f} {name})"
    return f"{count:,} bytes"


def printable(text: str) -> str:
    """``text`` with control characters, bidirectional overrides and undecodable bytes spelled out."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def posterior(probability: float, prior: float) -> float:
    """The probability of a fake where a share ``prior`` of comparable files is fake, by Bayes' rule, from one that
    assumes a half."""
    fake, real = probability * prior, (1 - probability) * (1 - prior)
    return fake / (fake + real)
