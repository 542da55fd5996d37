from __future__ import annotations

import io
from collections import Counter
from itertools import combinations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from corit_cli.data.degrade import blur, jpeg, parse_degradation
from corit_cli.data.forge import parse_forge
from corit_cli.data.variants import ORIGINAL, Variant
from tests.conftest import photograph


def test_a_chain_is_applied_always_and_in_order() -> None:
    for seed in range(6):  # with probability one half, one of six images would escape
        image = photograph(seed)
        out = Variant(chain=("blur:1", "jpeg:60"), seed=seed).apply(image)
        assert out.tobytes() == jpeg(blur(image, 1), 60).tobytes()


def test_a_chain_comes_after_the_rest() -> None:
    image = photograph(0)
    out = Variant(codec=(70, 70), chain=("blur:1",)).apply(image)
    assert out.tobytes() == blur(jpeg(image, 70), 1).tobytes()


def test_noise_in_a_chain_is_the_same_each_time() -> None:
    variant = Variant(chain=("noise:5",))
    one, two = (variant.apply(photograph(0)).tobytes() for _ in range(2))
    assert one == two != photograph(0).tobytes()


def test_a_copy_goes_through_one_to_three_in_their_order() -> None:
    specs = ("grey:1", "crop:0.5", "blur:2", "resize:0.5")
    steps = {name: parse_degradation(name) for name in specs}
    rng = np.random.default_rng(0)
    possible = {}
    for count in (1, 2, 3):
        for chosen in combinations(specs, count):
            image = photograph(0)
            for spec in chosen:
                image = steps[spec].apply(image, rng)
            possible[image.size, image.tobytes()] = chosen
    assert len(possible) == 14
    drawn = Counter()
    for seed in range(60):
        out = Variant(degradations=specs, seed=seed).apply(photograph(0))
        drawn[possible[out.size, out.tobytes()]] += 1
    assert {len(chosen) for chosen in drawn} == {1, 2, 3} and len(drawn) > 8


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 60), st.integers(0, 5))
def test_a_window_is_a_square_of_the_image_as_far_as_that_reaches(
    width: int, height: int, side: int, seed: int
) -> None:
    rows, columns = np.mgrid[:height, :width]
    numbered = Image.fromarray(np.stack([rows, columns, rows * 0], -1).astype(np.uint8))
    out = np.asarray(Variant(window=side, seed=seed).apply(numbered))
    assert out.shape == (min(side, height), min(side, width), 3)
    top, left = out[0, 0, :2]
    assert np.array_equal(out, np.asarray(numbered)[top : top + side, left : left + side])


def test_windows_come_from_everywhere_and_after_all_else() -> None:
    image = photograph(0, (40, 24))
    found = {Variant(window=16, seed=seed).apply(image).tobytes() for seed in range(200)}
    assert 100 < len(found) <= 25 * 9
    small = Variant(chain=("resize:0.5",), window=16).apply(image)
    assert small.size == (16, 12)


def test_fingerprints_of_caches_that_exist() -> None:
    forge = parse_forge("self_blend")
    assert ORIGINAL.fingerprint == "original"
    assert Variant(seed=3).fingerprint == "|None||None|3"
    assert (
        Variant(codec=(60, 90), degradations=("blur:2", "jpeg"), seed=1).fingerprint
        == "|None|3 of blur:2,jpeg|(60, 90)|1"
    )
    assert Variant(forge=forge, saved=80).fingerprint == f"{forge.fingerprint}|80||None|0"


def test_fingerprints_of_chains_differ() -> None:
    chains = [(), ("jpeg:75",), ("jpeg:75", "jpeg:90"), ("jpeg:90", "jpeg:75"), ("blur:2",)]
    prints = [Variant(chain=chain).fingerprint for chain in chains]
    prints.append(Variant(degradations=("blur:2",)).fingerprint)
    assert len(set(prints)) == len(prints)


def test_an_original_is_left_alone() -> None:
    buffer = io.BytesIO()
    photograph(0).save(buffer, "PNG")
    image = Image.open(buffer).convert("RGB")
    assert ORIGINAL.apply(image) is image
