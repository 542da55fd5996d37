"""Which windows are cut out of images, as options of a command line that loads nothing to show them."""

from __future__ import annotations

from dataclasses import dataclass

from corit_cli.config import Settings, option
from corit_cli.errors import CoritError

PANEL = "What is read from CLIP"


@dataclass(frozen=True)
class CropConfig(Settings):
    """How an image becomes windows of ``size`` x ``size``: see :func:`~corit_cli.data.windows.crop`. ``crops`` counts
    the native ones; with ``face`` the last window is one of a face.

    ``interpolation``, bicubic or bilinear, is that of the resized window; an extractor takes it from its backbone, and
    ``face`` from what it is to read.
    """

    mode: str = option(
        "both",
        "Windows of untouched pixels, the whole image resized as CLIP does, or both.",
        flag="--crop",
        choices=("both", "native", "resize"),
        panel=PANEL,
    )
    size: int = 224
    crops: int = option(1, "Native windows an image is averaged over.", minimum=1, maximum=1000, panel=PANEL)
    interpolation: str = "bicubic"
    face: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.size < 1:
            raise CoritError("the crop size must be at least 1")

    @property
    def windows(self) -> tuple[str, ...]:
        """What each window is, in the order in which they are cut."""
        native = tuple(f"native {i + 1}/{self.crops}" for i in range(self.crops))
        windows = {"both": ("resize", *native), "native": native, "resize": ("resize",)}[self.mode]
        return (*windows, "face") if self.face else windows
