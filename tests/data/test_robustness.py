from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from corit_cli.data.degrade import parse_degradation
from corit_cli.data.robustness import CHAINS, FAMILIES, parse_chains
from corit_cli.data.variants import Variant
from corit_cli.errors import CoritError
from tests.conftest import photograph


def test_every_chain_has_fixed_strengths_and_changes_a_photograph() -> None:
    image = photograph(0, (1400, 60))
    for name, chain in CHAINS.items():
        assert all(parse_degradation(s).low == parse_degradation(s).high for s in chain), name
        degraded = Variant(chain=chain).apply(image)
        assert (degraded.size, degraded.tobytes()) != (image.size, image.tobytes()), name


def test_names_say_the_strength() -> None:
    for family in ("jpeg", "webp", "resize", "blur", "noise", "crop"):
        names = [n for n in CHAINS if n.startswith(f"{family}-")]
        assert len(names) >= 3
        assert all(CHAINS[n] == (n.replace("-", ":"),) for n in names)


def test_a_family_a_name_or_all() -> None:
    assert parse_chains("all") == tuple(CHAINS)
    assert parse_chains("jpeg") == ("jpeg-95", "jpeg-90", "jpeg-75", "jpeg-50", "jpeg-30")
    assert parse_chains(" resize-2, jpeg-75,jpeg-75 ") == ("jpeg-75", "resize-2")
    assert set(FAMILIES) >= {"jpeg", "screenshot", "messenger", "resaved"}


@pytest.mark.parametrize(("text", "words"), [("sepia", "unknown.*jpeg, webp"), ("jpeg-1", "jpeg-95"), (" ,", "no rob")])
def test_parse_errors(text: str, words: str) -> None:
    with pytest.raises(CoritError, match=words):
        parse_chains(text)


def test_a_messenger_shrinks_only_what_is_large() -> None:
    rng = np.random.default_rng(0)
    sizes = {
        size: parse_degradation("fit:640").apply(Image.new("RGB", size), rng).size for size in ((1280, 320), (320, 200))
    }
    assert sizes == {(1280, 320): (640, 160), (320, 200): (320, 200)}
