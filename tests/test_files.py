from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from corit_cli.errors import CoritError
from corit_cli.files import cache_dir, content_sha256, model_card, write_atomically, write_together


def test_a_user_without_a_home_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(OSError):
        cache_dir().mkdir(parents=True)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise OSError(28, "No space left on device")

    with pytest.raises(CoritError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.txt"]


def test_files_that_were_not_there_do_not_stay_when_writing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(source: Path, target: Path) -> None:
        if target.name == "b":
            raise OSError(28, "No space left on device")
        os.replace(source, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(CoritError, match="No space left"):
        write_together({tmp_path / name: lambda path: path.write_text("new") for name in "ab"})
    assert os.listdir(tmp_path) == []


def test_what_is_written_can_be_read_by_all_whom_the_umask_lets(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "file.txt", lambda path: path.write_text("new"))
    finally:
        os.umask(before)
    assert (tmp_path / "file.txt").read_text() == "new" and (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o640


def test_the_model_card_is_found_and_goes_into_the_package() -> None:
    assert model_card().read_text().startswith("# ")
    built = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert '"docs/model-card.md" = "corit_cli/model-card.md"' in built


def test_all_that_the_package_is_built_from_goes_into_the_container() -> None:
    root = Path(__file__).parents[1]
    project = root.joinpath("pyproject.toml").read_text()
    table = project.partition("[tool.hatch.build.targets.wheel.force-include]\n")[2].partition("\n\n")[0]
    needed = {"pyproject.toml", "corit_cli", *re.findall(r'^"(.*?)" =', table, re.MULTILINE)}
    copies = re.findall(r"^COPY (?!--)(.*) \S+$", root.joinpath("Dockerfile").read_text(), re.MULTILINE)
    copied = {name for line in copies for name in line.split()}
    sent = {line[1:] for line in root.joinpath(".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert len(needed) > 2 and needed <= copied <= sent


def test_a_digest_is_of_what_is_in_a_file(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) + b"more than one block"
    (tmp_path / "a").write_bytes(content)
    assert content_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    assert content_sha256(tmp_path / "none") is None and content_sha256(tmp_path) is None


def test_a_link_stays_and_what_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "file.txt", tmp_path / "link.txt"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, lambda path: path.write_text("new"))
    assert link.is_symlink() and target.read_text() == "new" and os.listdir(tmp_path / "there") == ["file.txt"]


def test_a_device_is_written_into(tmp_path: Path) -> None:
    write_atomically(Path("/dev/null"), lambda path: path.write_text("new"))
    assert Path("/dev/null").is_char_device()
    with pytest.raises(CoritError, match="cannot write /dev/full: No space left"):
        write_atomically(Path("/dev/full"), lambda path: path.write_text("new"))
    assert Path("/dev/full").is_char_device()


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(pipe.read_text)
        write_atomically(pipe, lambda path: path.write_text("new"))
        assert read.result(10) == "new"
    assert pipe.is_fifo()


def test_folders_and_devices_are_not_replaced_with_others(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name, why in (("pipe", "no regular file"), ("folder", "a folder")):
        with pytest.raises(CoritError, match=f"cannot write .*{name}: it is {why}"):
            write_together({tmp_path / "a": lambda p: p.write_text("a"), tmp_path / name: lambda p: p.write_text("b")})
    assert sorted(os.listdir(tmp_path)) == ["folder", "pipe"]


def test_links_in_a_circle_and_the_people_who_may_read_stay(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(CoritError, match=r"cannot write .*symbolic links"):
        write_atomically(tmp_path / "loop", lambda path: path.write_text("new"))
    (tmp_path / "private").touch(0o600)
    write_atomically(tmp_path / "private", lambda path: path.write_text("new"))
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600 and (tmp_path / "loop").is_symlink()


@pytest.mark.parametrize("name", ["/dev/stdout", "out.txt"])
def test_standard_output_by_another_name_is_added_to(name: str, tmp_path: Path) -> None:
    """It may lead to a file, which opening it anew would empty, and renaming another over it would lose."""
    if not Path("/dev/stdout").exists():
        pytest.skip("this system has no /dev/stdout")
    script = (
        "from pathlib import Path; from corit_cli.files import write_atomically; print('before', flush=False);"
        f"write_atomically(Path({name!r}), lambda path: path.write_text('between\\n')); print('after')"
    )
    file = tmp_path / "out.txt"
    file.write_text("there\n")
    with file.open("a") as out:
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, stdout=out, check=True)
    assert file.read_text().split() == ["there", "before", "between", "after"]
