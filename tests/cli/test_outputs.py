"""No output destroys an input, another output or a picture, and that is told before any work is done."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from corit_cli.cli.app import app
from corit_cli.cli.outputs import check_apart, check_file, check_place
from corit_cli.errors import CoritError
from tests.conftest import photograph


@pytest.mark.parametrize("flag", ["--csv", "--html", "--out"])
def test_a_picture_is_never_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str) -> None:
    """As where a shell makes ``--csv *.jpg`` into two names."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg"):
        photograph(1).save(name)
    before = Path("a.jpg").read_bytes()
    for arguments in ((flag, "a.jpg", "b.jpg"), (flag, "a.jpg", "a.jpg")):
        result = CliRunner().invoke(app, ["detect", *arguments])
        assert result.exit_code == 2 and result.output.count("\n") == 1 and "a.jpg" in result.output
        assert Path("a.jpg").read_bytes() == before


def test_outputs_are_files_of_their_own(tmp_path: Path) -> None:
    photograph(1).save(tmp_path / "a.jpg")
    (tmp_path / "damaged.jpg").write_text("evidence all the same")
    (tmp_path / "link").symlink_to("damaged.jpg")
    for arguments, words in (
        (("--csv", "both", "--html", "both", "a.jpg"), "--csv and --html are the same file"),
        (("--csv", "link", "damaged.jpg"), "--csv would write over damaged.jpg"),
        (("--html", "damaged.jpg", "."), "--html would write over"),
    ):
        result = CliRunner().invoke(app, ["detect", *(str(tmp_path / a) if a[0] != "-" else a for a in arguments)])
        assert result.exit_code == 2 and words in result.output.replace(f"{tmp_path}/", "")
    assert (tmp_path / "damaged.jpg").read_text() == "evidence all the same"
    data = tmp_path / "manifest.csv"
    data.write_text("path,label\n")
    result = CliRunner().invoke(app, ["evaluate", str(data), "--csv", str(data)])
    assert result.exit_code == 2 and "would write over" in result.output
    check_apart({"--csv": Path("/dev/null"), "--html": Path("/dev/null")}, ["/dev/null"])
    check_apart({"--csv": tmp_path / "new", "--html": None}, [tmp_path / "a.jpg", "none", "a\0b"])


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere" / "a.csv")
    for name, words in (("loop", "symbolic links"), ("gone", "no folder"), (".", "a folder"), ("no/a", "no folder")):
        with pytest.raises(CoritError, match=f"cannot write .*{words}"):
            check_file(tmp_path / name)
    photograph(1).save(tmp_path / "old.png")
    assert check_place(tmp_path / "old.png")  # a plot of an earlier run
    (tmp_path / "old.csv").write_text("path\n")
    os.mkfifo(tmp_path / "pipe")
    for name in ("old.csv", "pipe", "new.csv"):
        assert check_file(tmp_path / name) == tmp_path / name
    assert check_file(None) is None


def test_one_thing_goes_to_standard_output(tmp_path: Path) -> None:
    here, script = tmp_path / "out.txt", tmp_path / "tell.py"
    script.write_text(
        "import sys; from pathlib import Path; from corit_cli.cli.outputs import on_stdout\n"
        "outputs = {f'--{i}': Path(path) for i, path in enumerate(sys.argv[2:])}\n"
        "print(on_stdout(outputs, {'--json': sys.argv[1] == 'json'}), file=sys.stderr)\n"
    )
    for given, said in (
        (["", here], "True"),
        (["", "/dev/stdout"], "True"),
        (["json", tmp_path / "other.txt", os.devnull], "False"),
        (["json", here], "--0 and --json would all go to standard output"),
        (["", here, "/dev/stdout"], "--0 and --1 would all go to standard output"),
    ):
        with here.open("a") as out:
            told = subprocess.run([sys.executable, script, *given], stdout=out, stderr=subprocess.PIPE, text=True)
        assert said in told.stderr
