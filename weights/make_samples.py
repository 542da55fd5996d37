"""Make weights/samples/: 256 px tiles of free photographs, and the same tiles sent through an autoencoder.

    pip install scikit-image scikit-learn matplotlib
    pip download --no-deps scipy==1.9.3 && unzip -o scipy-1.9.3-*.whl scipy/misc/face.dat
    apt-get download lomiri-wallpapers-16.04 && dpkg -x lomiri-wallpapers-16.04_*.deb lomiri
    python weights/make_samples.py TAEF2 scipy/misc/face.dat lomiri/usr/share/backgrounds/*.jpg

``TAEF2`` is a folder with the weights taef2_encoder.safetensors and taef2_decoder.safetensors.
"""

from __future__ import annotations

import bz2
import csv
import hashlib
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from corit_cli.data.forge import reconstruct
from corit_cli.data.images import read_image

OUT = Path(__file__).parent / "samples"
TILE = 256
MOST = 8  # tiles of one photograph, so that none outweighs the others
LEAST_TEXTURE = 1.1  # mean step between neighbouring pixels' brightness, in 8-bit levels

# photograph: (where its file comes from, SHA-256 of the file). Origins and licences are in samples/README.md.
PHOTOGRAPHS = {
    "astronaut": ("skimage/data/astronaut.png", "88431cd9653ccd539741b555fb0a46b61558b301d4110412b5bc28b5e3ea6cb5"),
    "chelsea": ("skimage/data/chelsea.png", "596aa1e7cb875eb79f437e310381d26b338a81c2da23439704a73c4651e8c4bb"),
    "coffee": ("skimage/data/coffee.png", "cc02f8ca188b167c775a7101b5d767d1e71792cf762c33d6fa15a4599b5a8de7"),
    "hubble": (
        "skimage/data/hubble_deep_field.jpg",
        "3a19c5dd8a927a9334bb1229a6d63711b1c0c767fb27e2286e7c84a3e2c2f5f4",
    ),
    "retina": ("skimage/data/retina.jpg", "38a07f36f27f095e818aea7b96d34202c05176d30253c66733f2e00379e9e0e6"),
    "rocket": ("skimage/data/rocket.jpg", "c2dd0de7c538df8d111e479619b129464d0269d0ae5fd18ca91d33a7fdfea95c"),
    "hopper": (
        "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
        "a8ca6d734765703b09728ab47fe59f473d93ae3967fc24c7c0288c3c7adb7130",
    ),
    "raccoon": ("face.dat", "9d8b0b4d081313e2b485748c770472e5a95ed1738146883d84c7030493e82886"),
    "china": ("sklearn/datasets/images/china.jpg", "8378025ad2519d649d02e32bd98990db4ab572357d9f09841c2fbfbb4fefad29"),
    "dahlia": (
        "sklearn/datasets/images/flower.jpg",
        "a77f6ec41e353afdf8bdff2ea981b2955535d8d83294f8cfa49cf4e423dd5638",
    ),
    "aitzgorri": (
        "aitzgorri_by_Aitzol_Berasategi.jpg",
        "66268e7b48f8854d36a28765fac6e23ec1aee251daa6da1f64715f201020ad36",
    ),
    "brushes": ("Picture_1A_by_freespace.jpg", "89e86af38d04daaef975665dc2127e9fa76f0fd68f4eea105a2d0ae3390b010b"),
    "fig": ("Picture_0B_by_freespace.jpg", "c8c0ab18e48d9e0419fe42881112137f3afafc27dfddc29ec3a6d54c56d225ad"),
    "friends": ("friends_by_Aitzol_Berasategi.jpg", "cc40e313c74e421edffe3403def413c16878ce14661cce7ec5915baeab35538d"),
    "life": ("life_by_Aitzol_Berasategi.jpg", "4c119350ead80201fe256850c3d316309ddfb4bdf10b235ce982dcde0c667c05"),
    "picos": (
        "picosdeeuropa_by_Aitzol_Berasategi.jpg",
        "414d0072b2f6f2c555deafeaef6e45c4fed6fa9ad26eba6560ca8803959cf97a",
    ),
    "sunset": ("sunset_by_Aitzol_Berasategi.jpg", "474dab6a4b9f94dc76c29dfe30e9f5db4af0fd2e33fe5d695f8152b371efca18"),
    "wine": ("Wine_by_Jakkub_Mede.jpg", "d2e96e6d4da40dd804b3d0ce295e94de04a2d7d9b6785d42cd9d92ba58bced74"),
    "seeding": (
        "seeding_by_Clements_Engelhardt.jpg",
        "a5634d1ab5e41a3568e92d4a894a500c92b891f9ff734e50bd224d6e185a605f",
    ),
}


def locate(name: str, given: dict[str, Path]) -> Path:
    """A file given on the command line, or one inside an installed package."""
    package, _, rest = name.partition("/")
    return Path(find_spec(package).submodule_search_locations[0]) / rest if rest else given[name]


def read(path: Path) -> Image.Image:
    """``face.dat`` holds raw pixels, compressed; the others are image files."""
    if path.suffix == ".dat":
        return Image.fromarray(np.frombuffer(bz2.decompress(path.read_bytes()), np.uint8).reshape(768, 1024, 3))
    return read_image(path)


def tiles(photograph: Image.Image) -> list[tuple[int, int, Image.Image]]:
    """(row, column, tile) of an even grid without overlap: the ``MOST`` with most texture, none with almost none.

    Tiles keep the photograph's own pixels: nothing is resized.
    """
    columns, rows = (side // TILE for side in photograph.size)
    found = []
    for row in range(rows):
        for column in range(columns):
            left, top = (
                round((i + 0.5) * side / n - TILE / 2)
                for i, side, n in ((column, photograph.width, columns), (row, photograph.height, rows))
            )
            tile = photograph.crop((left, top, left + TILE, top + TILE))
            if texture(tile) >= LEAST_TEXTURE:
                found.append((row, column, tile))
    return sorted(found, key=lambda entry: -texture(entry[2]))[:MOST]


def texture(tile: Image.Image) -> float:
    grey = np.asarray(tile.convert("L"), float)
    return float(np.mean([np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]))


def main(autoencoder: str, *files: str) -> None:
    given = {Path(file).name: Path(file) for file in files}
    for folder in ("real", "fake"):
        shutil.rmtree(OUT / folder, ignore_errors=True)
        (OUT / folder).mkdir(parents=True)
    lines = []
    for name, (file, sha256) in PHOTOGRAPHS.items():
        path = locate(file, given)
        if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
            sys.exit(f"{path} is not the file that the samples were made from")
        for row, column, tile in tiles(read(path)):
            stem = f"{name}_{row:02}_{column:02}"
            versions = (("real", "", tile), ("fake", "taef2", reconstruct(tile, autoencoder)))
            for label, generator, image in versions:
                image.save(OUT / label / f"{stem}.jpg", quality=95, subsampling="4:2:0")
                lines.append((f"{label}/{stem}.jpg", label, name, generator, stem))
    with (OUT / "manifest.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "label", "source", "generator", "video_id"))
        writer.writerows(sorted(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
