"""The Dockerfile's steps in a fresh virtual environment, where no container engine is at hand: its size, and its start.

    python benchmarks/container.py /tmp/corit-image      # made there, which takes a while, unless it is there already

What the file copies, runs and sets is taken from it, with this folder for its own. The commands then run without HOME,
from an empty folder, with the package read-only, and it is compared afterwards.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
IMAGE = ROOT / "examples" / "real" / "astronaut.png"
IN_IMAGE = "/opt/corit"
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")


def build(folder: Path) -> None:
    """The first stage, up to the environment that the image takes from it."""
    (run,) = re.findall(r"^RUN (.*-m venv.*)$", DOCKERFILE, re.MULTILINE)
    with tempfile.TemporaryDirectory() as source:
        for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, re.MULTILINE):
            *names, to = shlex.split(line)
            for name in names:
                place = Path(source, to)
                place.parent.mkdir(exist_ok=True)
                shutil.copytree(ROOT / name, place) if (ROOT / name).is_dir() else shutil.copy(ROOT / name, place)
        try:
            subprocess.run(["sh", "-ec", run.replace(IN_IMAGE, str(folder))], cwd=source, check=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)  # it would be taken for a whole one
            raise


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of every file and folder below one."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the environment is, or is made")
    folder = parser.parse_args().folder.absolute()
    if not folder.exists():
        build(folder)
    subprocess.run(["chmod", "-R", "a-w", folder], check=True)
    before = listing(folder)
    print(f"{sum(size for size, _ in before.values()) / 2**30:.2f} GiB in {len(before)} files")

    with tempfile.TemporaryDirectory() as empty:
        (line,) = re.findall(r"^ENV (.*)$", DOCKERFILE, re.MULTILINE)
        given = dict(word.split("=", 1) for word in shlex.split(line.replace(IN_IMAGE, str(folder))))
        given["PATH"] = given["PATH"].replace("$PATH", "/usr/bin:/bin")
        how = {"env": given | {"TMPDIR": empty}, "cwd": empty, "text": True}
        corit = str(folder / "bin" / "corit")

        begun = time.monotonic()
        found = subprocess.run([corit, "detect", str(IMAGE), "--json"], stdout=subprocess.PIPE, check=True, **how)
        (row,) = json.loads(found.stdout)["results"]
        print(f"detect: {row['verdict']} {row['probability']:.4f}, {time.monotonic() - begun:.1f} s")

        begun = time.monotonic()
        with subprocess.Popen([corit, "serve", "--port", "0"], stderr=subprocess.PIPE, **how) as process:
            address = next(line.split()[-1] for line in process.stderr if line.startswith("corit serve: "))
            with urllib.request.urlopen(f"{address}health", timeout=5) as answer:
                print(f"serve: {json.load(answer)['status']} after {time.monotonic() - begun:.1f} s")
            begun = time.monotonic()
            process.terminate()
            process.communicate(timeout=30)
            print(f"ended {time.monotonic() - begun:.1f} s after SIGTERM, with {process.returncode}")
        print("left outside of it:", ", ".join(sorted(path.name for path in Path(empty).iterdir())) or "nothing")
    print("the package is", "as it was" if listing(folder) == before else "CHANGED")


if __name__ == "__main__":
    main()
