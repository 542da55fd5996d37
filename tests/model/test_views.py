from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from corit_cli.errors import CoritError
from corit_cli.model.settings import VIEW_WORDS
from corit_cli.model.views import VIEWS, blur, jpeg, parse_view
from tests.conftest import photograph


def test_help_and_reports_have_words_for_each() -> None:
    assert set(VIEW_WORDS) == set(VIEWS)


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from(sorted(VIEWS)), height=st.integers(8, 40), width=st.integers(8, 40), seed=st.integers(0, 99)
)
def test_views_keep_shape_and_range_and_repeat_themselves(name: str, height: int, width: int, seed: int) -> None:
    images = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(seed))
    view = parse_view(name)
    out = view(images)
    assert out.shape == images.shape
    assert float(out.min()) >= 0 and float(out.max()) <= 1 + 1e-6
    assert torch.equal(out, view(images))
    # An image's view does not depend on the batch it comes in.
    torch.testing.assert_close(view(images[1:]), out[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["blur", "resample", "jpeg"])
def test_a_flat_image_has_no_residual(name: str) -> None:
    images = torch.full((1, 3, 32, 32), 128 / 255)
    torch.testing.assert_close(parse_view(name)(images), images, atol=5e-3, rtol=0)


def test_blur_equals_scipy() -> None:
    ndimage = pytest.importorskip("scipy.ndimage")
    image = torch.rand(1, 1, 40, 30)
    expected = ndimage.gaussian_filter(image[0, 0].numpy().astype(np.float64), 1.5, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(blur(image, 1.5)[0, 0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_jpeg_is_close_to_a_real_codec(quality: int) -> None:
    image = photograph(3, (64, 64))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality, subsampling=0)
    before = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
    theirs = (torch.from_numpy(np.array(Image.open(buffer))).permute(2, 0, 1)[None] / 255 - before).flatten()
    ours = (jpeg(before, quality) - before).flatten()
    # A codec also rounds to integers before and after: the finer the quantisation, the more that shows.
    assert torch.corrcoef(torch.stack([ours, theirs]))[0, 1] > (0.8 if quality > 90 else 0.95)
    assert ours.square().mean() == pytest.approx(float(theirs.square().mean()), rel=0.1)


@pytest.mark.parametrize("spec", ["sharpen", "blur:x", "blur:0", "jpeg:101", "resample:1", ""])
def test_nonsense_is_refused(spec: str) -> None:
    with pytest.raises(CoritError):
        parse_view(spec)
