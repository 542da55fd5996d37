"""Forgeries of real photographs that leave the semantics alone. Deterministic by seed, one small function each.

``parse_forge("reconstruct:FOLDER")`` turns the command line's spelling into a :class:`Forge`:

=========================  =========================================================================================
``reconstruct:SOURCE``     through a latent-diffusion autoencoder, ``SOURCE`` its folder or Hub repository
``resample``               resized or turned a little, and back
``recompress``             through JPEG on a block grid of its own
``self_blend``             a region of the photograph replaced by another view of that same region
``face_blend``             every face replaced by another view of itself; trains the reading of faces alone
``NAME@part[:SOURCE]``     the forgery ``NAME`` in one random region; the rest of the photograph stays, to the bit
``NAME@native[:SOURCE]``   trains the readings of native windows alone
``SHARE*NAME...``          of a share of the photographs (more than 0, at most 1), drawn by their contents
=========================  =========================================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter

from corit_cli.data.degrade import jpeg, resize
from corit_cli.data.faces import finder, square
from corit_cli.data.opening import ImageError
from corit_cli.errors import CoritError

#: Reconstruction costs time by the pixel; of a larger photograph only the central square of this side is used.
MAX_SIDE = 384

#: What a region may cover of the image, as a share of its area.
REGION_AREA = (0.05, 0.4)


@dataclass(frozen=True)
class Forged:
    """A forged image (RGB) and where it was forged: ``mask`` (H, W), float32, is the weight of the forgery in each
    pixel. Where it is 0 the pixel is the photograph's own; where it is 1 nothing of that pixel is left."""

    image: Image.Image
    mask: np.ndarray


def middle(image: Image.Image) -> Image.Image:
    """The central square of side ``MAX_SIDE``, or what there is of it."""
    left, top = (max(0, (side - MAX_SIDE) // 2) for side in image.size)
    return image.crop((left, top, left + min(image.width, MAX_SIDE), top + min(image.height, MAX_SIDE)))


def reconstruct(image: Image.Image, source: str) -> Image.Image:
    """The photograph after a latent-diffusion autoencoder: same content, a generator's decoder traces all over.

    ``source`` is a folder or Hub repository with weights of the TAESD family (see ``autoencoder.py``). Of an image
    larger than ``MAX_SIDE`` only the middle comes back.
    """
    import torch

    pixels = torch.from_numpy(np.array(middle(image))).permute(2, 0, 1)[None].float() / 255  # (1, 3, H, W)
    pixels = (_autoencoder(source)(pixels)[0] * 255).round().to(torch.uint8)  # (3, H, W)
    return Image.fromarray(pixels.permute(1, 2, 0).numpy())


def resample(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Scaled by 5 to 20% up or down, or turned by 0.5 to 3 degrees, and back: the traces of interpolation."""
    sign = rng.choice((-1, 1))
    if rng.random() < 0.5:
        return resize(image, 1 + sign * rng.uniform(0.05, 0.2)).resize(image.size, Image.Resampling.BICUBIC)
    angle = sign * rng.uniform(0.5, 3)
    margin = math.ceil(math.radians(abs(angle)) * math.hypot(*image.size) / 2) + 2  # the corners come back whole
    turned = _warp(_padded(image, margin, margin, margin, margin), angle=angle)
    return _warp(turned, angle=-angle).crop((margin, margin, margin + image.width, margin + image.height))


def recompress(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Through JPEG and back at a quality of 70 to 90, the 8 x 8 blocks laid from a random corner.

    The photograph's own blocks, if it has any, are crossed by new ones, as in a patch that came from another file.
    """
    left, top = rng.integers(0, 8, 2).tolist()
    padded = _padded(image, left, top, 0, 0)
    return jpeg(padded, rng.integers(70, 91)).crop((left, top, left + image.width, top + image.height))


def self_blend(image: Image.Image, rng: np.random.Generator) -> Forged:
    """A region of the photograph blended with another view of the same photograph: self-blending (Shiohara and
    Yamasaki, "Detecting Deepfakes with Self-Blended Images", CVPR 2022), with any smooth region in place of a face.

    The view differs mildly in colour, in sharpness and in place. All differences are given to the view, none to the
    photograph around it, so that the mask tells exactly which pixels are forged.
    """
    ratio = rng.choice((0.5, 0.75, 1.0))
    return blend(image, _other_view(image, rng, MILD), ratio * region(image.size, rng))


class NoFaceError(ImageError):
    """There is no face to forge."""


def face_blend(image: Image.Image, rng: np.random.Generator) -> Forged:
    """Every face blended with another view of itself, as in self-blending, and with as strong a change as swapped faces
    show. Raises NoFaceError where there is none."""
    found, mask = finder()(image), np.zeros((image.height, image.width), np.float32)
    if not found:
        raise NoFaceError("no face found")
    out = image.copy()
    for one in found:
        left, top, side = square(image.size, one)
        face = out.crop((left, top, left + side, top + side))
        ratio = rng.choice((0.5, 0.75, 1.0, 1.0))
        blended = blend(face, _other_view(face, rng, STRONG), ratio * oval(side, rng))
        out.paste(blended.image, (left, top))
        part = mask[top : top + side, left : left + side]
        np.maximum(part, blended.mask, out=part)
    return Forged(out, mask)


def oval(side: int, rng: np.random.Generator) -> np.ndarray:
    """A rugged oval with a soft edge, about a face's in the square that :func:`~corit_cli.data.faces.align` cuts:
    weights (side, side), float32 in [0, 1]."""
    y, x = np.meshgrid(*[np.linspace(-1, 1, 64)] * 2, indexing="ij")
    bumps = Image.fromarray(rng.standard_normal((5, 5)).astype(np.float32))
    bumps = np.asarray(bumps.resize((64, 64), Image.Resampling.BICUBIC))
    right, down = rng.uniform(-0.06, 0.06, 2)
    width, height = rng.uniform(0.35, 0.55), rng.uniform(0.45, 0.7)
    field = 1 + 0.15 * bumps - np.hypot((x - right) / width, (y - down - 0.03) / height)  # (64, 64), 0 at the edge
    weights = (0.5 + field / rng.uniform(0.1, 0.5)).clip(0, 1).astype(np.float32)
    return np.asarray(Image.fromarray(weights).resize((side, side), Image.Resampling.BILINEAR)).clip(0, 1)


def region(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A random smooth region with a soft edge: weights (H, W), float32 in [0, 1], for ``size`` (width, height).

    At least half weight on a share of the image drawn from ``REGION_AREA`` (always one pixel or more).
    """
    width, height = (min(side, 64) for side in size)  # on a coarse grid, enlarged in the end
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    centre_x, centre_y = rng.uniform(-0.6, 0.6, 2)
    bumps = Image.fromarray(rng.standard_normal((6, 6)).astype(np.float32))
    bumps = np.asarray(bumps.resize((width, height), Image.Resampling.BICUBIC))
    field = 0.25 * bumps - np.hypot(x - centre_x, y - centre_y)  # (height, width): a cone with a rugged slope
    edge = np.quantile(field, 1 - rng.uniform(*REGION_AREA), method="lower")
    softness = max(min(0.25, 2 * (field.max() - edge)), 1e-6)
    weights = (0.5 + (field - edge) / softness).clip(0, 1).astype(np.float32)
    return np.asarray(Image.fromarray(weights).resize(size, Image.Resampling.BILINEAR)).clip(0, 1)


def blend(image: Image.Image, forged: Image.Image, mask: np.ndarray) -> Forged:
    """``mask`` (H, W) parts of ``forged`` and the rest of ``image``; all three have one size."""
    base = np.asarray(image, np.float32)  # (H, W, 3)
    pixels = base + mask[..., None].astype(np.float32) * (np.asarray(forged, np.float32) - base)
    return Forged(Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8)), mask.astype(np.float32))


# --- spelling -------------------------------------------------------------------------------------

FORGES = ("reconstruct", "resample", "recompress", "self_blend", "face_blend")
#: Forgeries that choose their region themselves.
BLENDS = {"self_blend": self_blend, "face_blend": face_blend}


@dataclass(frozen=True)
class Forge:
    """A named way to forge, of the whole image or of a ``part``; calling it maps an RGB image to its forgery.

    With ``native`` only readings of native windows are trained on it. ``share`` is that of the photographs forged.
    """

    name: str
    source: str = ""
    part: bool = False
    native: bool = False
    share: float = 1.0

    @property
    def spelling(self) -> str:
        """As :func:`parse_forge` reads it, without its share and source, nor what is trained on it."""
        return self.name + ("@part" if self.part else "")

    @property
    def fingerprint(self) -> str:
        """Names the forgery in a cache key: its spelling, with the autoencoder's weights in place of where they are."""
        return f"{self.spelling}:{_autoencoder(self.source).sha256}" if self.source else self.spelling

    @property
    def of_faces(self) -> bool:
        """Whether only the reading of faces is trained on it."""
        return self.name == "face_blend"

    @property
    def local(self) -> bool:
        """Whether a part of the image stays as it was."""
        return self.part or self.name == "self_blend"

    def check(self) -> None:
        """Raise CoritError now, not image by image, when the autoencoder cannot be had."""
        if self.source:
            _autoencoder(self.source)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        return self.forge(image, rng).image

    def forge(self, image: Image.Image, rng: np.random.Generator) -> Forged:
        """The forgery with its mask. It has the size of ``image``, or of the middle that ``reconstruct`` uses."""
        if self.name in BLENDS:
            return BLENDS[self.name](image, rng)
        if self.name == "reconstruct":
            image = middle(image)
            forged = reconstruct(image, self.source)
        else:
            forged = {"resample": resample, "recompress": recompress}[self.name](image, rng)
        if self.part:
            return blend(image, forged, region(image.size, rng))
        return Forged(forged, np.ones((image.height, image.width), np.float32))


def parse_forge(spec: str) -> Forge:
    """``[SHARE*]NAME[@part|@native][:SOURCE]`` to a :class:`Forge`. Raises CoritError naming what is understood."""
    head, _, source = spec.partition(":")
    share, star, head = head.rpartition("*")
    name, at, where = head.partition("@")
    if name not in FORGES:
        hint = ", as in 0.3*resample for three photographs in ten" if name[:1].isdigit() else ""
        raise CoritError(f"unknown forgery {name!r}: choose from {', '.join(FORGES)}{hint}")
    if star and not 0 < _number(share) <= 1:
        raise CoritError(f"cannot read {share!r} in {spec!r}: write 0.3*{head} for three photographs in ten")
    if at and where not in ("part", "native"):
        raise CoritError(
            f"cannot read {head!r}: write {name} for the whole image, {name}@part for a region of it, or {name}@native "
            "for the readings of native windows"
        )
    if at and name in BLENDS:
        taken = "for all readings, or one of its own" if where == "native" else "always of a part of the image"
        raise CoritError(f"{name} is {taken}: write {name}")
    if source.endswith(("@part", "@native")):
        source, _, where = source.rpartition("@")
        raise CoritError(f"cannot read {spec!r}: write {name}@{where}:{source}")
    if name == "reconstruct" and not source:
        raise CoritError(f"{head} needs autoencoder weights: {head}:FOLDER or {head}:HUB/REPOSITORY")
    if name != "reconstruct" and ":" in spec:
        raise CoritError(f"{name} takes nothing after a colon: write {head}")
    return Forge(name, source, where == "part", where == "native", _number(share) if star else 1.0)


def _number(text: str) -> float:
    """What ``text`` says, NaN where that is no number."""
    try:
        return float(text)
    except ValueError:
        return math.nan


# --- steps ----------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def _autoencoder(source: str):
    from corit_cli.data.autoencoder import Autoencoder

    return Autoencoder.load(source)


@dataclass(frozen=True)
class Change:
    """How far another view may differ: ``gain`` and ``scale`` by a share, ``tint`` by levels, ``shift`` by a share of
    the longer side; ``sharpen`` is the range of an unsharp mask in percent, ``shrink`` that of a factor, and ``softer``
    how often it is shrunk rather than sharpened."""

    gain: float
    tint: float
    sharpen: tuple[int, int]
    shrink: tuple[float, float]
    softer: float
    scale: float
    shift: float


MILD = Change(gain=0.03, tint=2.5, sharpen=(20, 60), shrink=(0.6, 0.9), softer=0.5, scale=0.01, shift=0.005)
STRONG = Change(gain=0.1, tint=15, sharpen=(40, 120), shrink=(0.25, 0.7), softer=0.7, scale=0.04, shift=0.02)


def _other_view(image: Image.Image, rng: np.random.Generator, change: Change) -> Image.Image:
    """The photograph a little lighter or darker, of another tint, sharper or softer, and moved by a pixel or few."""
    gain, tint = 1 + rng.uniform(-change.gain, change.gain), rng.uniform(-change.tint, change.tint, 3)
    pixels = np.asarray(image, np.float32)
    middle_grey = pixels.mean()
    pixels = (pixels - middle_grey) * gain + middle_grey + tint
    view = Image.fromarray(np.rint(pixels).clip(0, 255).astype(np.uint8))
    if rng.random() < 1 - change.softer:
        low, high = change.sharpen
        view = view.filter(ImageFilter.UnsharpMask(radius=1.5, percent=int(rng.integers(low, high + 1)), threshold=0))
    else:
        view = resize(view, rng.uniform(*change.shrink)).resize(view.size, Image.Resampling.BICUBIC)
    shift = rng.uniform(-change.shift, change.shift, 2) * max(view.size)
    return _warp(view, scale=1 + rng.uniform(-change.scale, change.scale), shift=tuple(shift))


def _warp(
    image: Image.Image, angle: float = 0.0, scale: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
) -> Image.Image:
    """Turned by ``angle`` degrees and enlarged by ``scale`` about its centre, moved by ``shift`` pixels (x, y), at the
    same size, bicubic. What comes in from outside is the image's own mirror."""
    turn = math.radians(angle)
    matrix = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]]) / scale
    farthest = np.linalg.norm(matrix - np.eye(2), 2) * math.hypot(*image.size) / 2 + math.hypot(*shift)
    margin = math.ceil(farthest) + 2  # the cubic kernel reaches two pixels
    padded = _padded(image, margin, margin, margin, margin)
    centre = np.array(padded.size) / 2
    offset = centre - matrix @ (centre + shift)
    (a, b), (c, d) = matrix.tolist()
    coefficients = (a, b, float(offset[0]), c, d, float(offset[1]))  # where each output pixel is taken from
    warped = padded.transform(padded.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC)
    return warped.crop((margin, margin, margin + image.width, margin + image.height))


def _padded(image: Image.Image, left: int, top: int, right: int, bottom: int) -> Image.Image:
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), "symmetric"))
