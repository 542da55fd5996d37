"""What people do to pictures on purpose: tone mapping, grading, filters, collages, screenshots, scans of prints.

None of it makes a photograph a forgery, nor a generated picture a photograph. Every function takes and returns an RGB
image and depends on nothing but its arguments; ``strength`` is in the unit that its docstring names.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from corit_cli.data.opencv import load_opencv
from corit_cli.data.opening import MAX_PIXELS, ImageError


def tonemap(image: Image.Image, strength: float) -> Image.Image:
    """The look of HDR tone mapping: local contrast evened out on a grid of 8 x 8 tiles (CLAHE on the lightness, with
    ``strength`` as its clip limit), and a fifth more colour."""
    cv2 = load_opencv()
    lab = cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2LAB)  # (H, W, 3)
    lab[..., 0] = cv2.createCLAHE(strength, (8, 8)).apply(np.ascontiguousarray(lab[..., 0]))
    return ImageEnhance.Color(Image.fromarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))).enhance(1.2)


def grade(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Strong editing: exposure, contrast, saturation and white balance each changed by up to ``strength`` (a share,
    either way), then sharpened by as much."""
    exposure, contrast, colour, warmth = 1 + strength * rng.uniform(-1, 1, 4)
    balance = np.array([warmth, 1, 1 / max(warmth, 0.1)]) ** 0.5 * exposure  # (3,)
    table = np.rint(np.arange(256)[:, None] * balance).clip(0, 255).astype(np.uint8)  # (256, 3)
    image = image.point(table.T.ravel().tolist())
    image = ImageEnhance.Color(ImageEnhance.Contrast(image).enhance(contrast)).enhance(colour)
    return image.filter(ImageFilter.UnsharpMask(2, round(200 * strength), 2))


def grey(image: Image.Image, strength: float) -> Image.Image:
    """Without ``strength`` (a share) of its colour."""
    return ImageEnhance.Color(image).enhance(1 - strength)


def portrait(image: Image.Image, strength: float) -> Image.Image:
    """A telephone's portrait mode: all but an oval in the middle blurred, by ``strength`` hundredths of the shorter
    side (standard deviation)."""
    width, height = image.size
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    far = np.hypot(x / 0.55, y / 0.8)  # 1 on the oval's edge
    mask = Image.fromarray(np.rint(255 * ((far - 0.9) / 0.2).clip(0, 1)).astype(np.uint8))
    blurred = image.filter(ImageFilter.GaussianBlur(strength * min(image.size) / 100))
    return Image.composite(blurred, image, mask)


def paint(image: Image.Image, strength: float) -> Image.Image:
    """A painterly filter: detail smeared out within ``strength`` pixels, edges kept (OpenCV's edge-preserving one)."""
    cv2 = load_opencv()
    pixels = cv2.edgePreservingFilter(np.asarray(image), flags=cv2.RECURS_FILTER, sigma_s=strength, sigma_r=0.4)
    return Image.fromarray(pixels)


def collage(image: Image.Image, strength: float) -> Image.Image:
    """One picture of a collage of ``strength`` (rounded) a side, the others being copies of it, mirrored in turn, with
    white gutters; of the size that it had."""
    n = round(strength)
    sheet = Image.new("RGB", image.size, "white")
    gutter = max(1, min(image.size) // 100)
    width, height = (max(1, (side - gutter * (n + 1)) // n) for side in image.size)
    cell = image.resize((width, height), Image.Resampling.LANCZOS)
    other = ImageOps.mirror(cell)
    for i in range(n * n):
        row, column = divmod(i, n)
        place = (gutter + column * (width + gutter), gutter + row * (height + gutter))
        sheet.paste(other if (row + column) % 2 else cell, place)
    return sheet


def screenshot(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Shown at ``strength`` times its size within the plain bars of a page, light or dark, and captured with them.

    Raises ImageError where that would be too many pixels.
    """
    width, height = (max(1, round(side * strength)) for side in image.size)
    if width * height > max(MAX_PIXELS, image.width * image.height):
        raise ImageError(f"{strength:g} times {image.width} x {image.height} pixels are too many")
    shown = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top, right, bottom = np.rint(np.array([width, height] * 2) * rng.uniform(0, 0.2, 4)).astype(int).tolist()
    light = rng.random() < 0.5
    page = Image.new("RGB", (width + left + right, height + top + bottom), (248, 248, 250) if light else (24, 26, 30))
    ink, draw = (90, 90, 96) if light else (170, 170, 176), ImageDraw.Draw(page)
    for y in range(8, top - 8, 20):  # lines of writing above the picture
        draw.rectangle((12, y, 12 + round(page.width * rng.uniform(0.2, 0.8)), y + 6), ink)
    page.paste(shown, (left, top))
    return page


def rescan(image: Image.Image, strength: float, rng: np.random.Generator) -> Image.Image:
    """Printed and scanned: softened, its range and colours those of ink on paper, turned a little, lit unevenly, with
    the grain of both; ``strength`` 1 is a good office printer, less is better, more is worse."""
    turned = image.filter(ImageFilter.GaussianBlur(0.8 * strength))
    turned = turned.rotate(rng.uniform(-1, 1) * strength, Image.Resampling.BICUBIC, fillcolor=(244, 241, 234))
    pixels = np.asarray(turned, np.float32)  # (H, W, 3)
    black, white = 30 * strength, np.array([250, 247, 240], np.float32) - 8 * strength
    pixels = black + pixels / 255 * (white - black)
    slope = rng.uniform(-0.06, 0.06, 2) * strength
    y, x = np.ogrid[-1 : 1 : image.height * 1j, -1 : 1 : image.width * 1j]
    pixels *= (1 + slope[0] * x + slope[1] * y).astype(np.float32)[..., None]
    shape, grey = pixels.shape, (*pixels.shape[:2], 1)
    grain = rng.standard_normal(grey, np.float32) + 0.5 * rng.standard_normal(shape, np.float32)
    return Image.fromarray(np.rint(pixels + 4 * strength * grain).clip(0, 255).astype(np.uint8))
