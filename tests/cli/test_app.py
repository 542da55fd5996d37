from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

import pytest
from typer.models import OptionInfo
from typer.testing import CliRunner

from corit_cli.cli.app import COMMANDS, app, load_command
from corit_cli.cli.helping import COMMON
from corit_cli.cli.options import parse_workers
from corit_cli.version import __version__
from tests.cli.conftest import one_line_error
from tests.conftest import CORIT


def test_help_lists_the_commands_that_exist(corit) -> None:
    result = corit("--help")
    assert result.returncode == 0
    for command in COMMANDS:
        assert command in result.stdout


def test_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    for arguments in (["detect", "a.jpg"], ["train", "--help"]):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2 and result.stderr.count("\n") == 1 and "on Windows use WSL" in result.stderr
    assert CliRunner().invoke(app, ["--help"]).exit_code == 0


def help_text(command: str, columns: int, flag: str = "--help") -> list[str]:
    result = CliRunner().invoke(app, [command, flag], env={"COLUMNS": str(columns)})
    assert result.exit_code == 0
    return result.stdout.splitlines()


@pytest.mark.parametrize(("columns", "lines"), [(100, 64), (80, 80)])
def test_the_help_of_detect_fits_a_screen(columns: int, lines: int) -> None:
    assert len(help_text("detect", columns)) <= lines


def test_the_help_of_train_fits_a_large_screen() -> None:
    assert len(help_text("train", 100)) <= 62


@pytest.mark.parametrize("command", COMMANDS)
def test_all_options_stand_in_the_whole_help_and_common_ones_in_the_short(command: str) -> None:
    short, whole = (" ".join(help_text(command, 200, flag)) for flag in ("--help", "--help-all"))
    parameters = load_command(command).params
    flags = [name for parameter in parameters for name in parameter.opts if name.startswith("--")]
    assert all(re.search(f"{flag}[ ,]", whole) for flag in flags)
    assert "<bool>" not in short + whole
    common = COMMON.get(command, "").split()
    assert all(re.search(f"--{name}[ ,]", short) for name in common) and {f"--{name}" for name in common} <= set(flags)
    if common:
        assert "--help-all shows every option" in short
        assert sum(f"{flag} " in short for flag in flags) < len(flags)


def test_the_help_of_the_whole_names_no_types() -> None:
    shown = [CliRunner().invoke(app, [flag], env={"COLUMNS": "200"}) for flag in ("--help", "--help-all", "-h")]
    assert len({one.stdout for one in shown}) == 1 and "<bool>" not in shown[0].stdout and "detect" in shown[0].stdout
    assert {one.exit_code for one in shown} == {0}


def test_a_file_where_a_command_should_stand(corit, tmp_path: Path) -> None:
    (tmp_path / "a photo.jpg").touch()
    result = corit("a photo.jpg", "--json", cwd=tmp_path)
    one_line_error(result, "is no command: to look at a file, run corit detect 'a photo.jpg' --json")


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_examples_unbroken(command: str, columns: int) -> None:
    text = help_text(command, columns)
    assert max(map(len, text)) <= columns
    examples = [line for line in map(str.strip, text) if re.search(rf"corit(_cli)? {command}( |$)", line)]
    written = [line.strip() for line in (command_of(command).__doc__ or "").splitlines()]
    assert 2 <= len(examples) <= 5 and set(examples) <= set(written)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_bear_the_names_of_their_parameters(command: str) -> None:
    """Some Typer versions take a metavar that equals the name in capitals for the option's name."""
    parameters = load_command(command).params
    names = [name for parameter in parameters for name in parameter.opts if name.startswith("--")]
    assert len(names) > 2 and names == [name.lower() for name in names]
    for name, hint in get_type_hints(command_of(command), include_extras=True).items():
        for option in getattr(hint, "__metadata__", ()):
            if isinstance(option, OptionInfo) and option.metavar == name.upper():
                assert str(option.default).startswith("--"), name  # where Typer keeps the first name that is given


def command_of(name: str) -> Callable:
    return inspect.unwrap(load_command(name).callback)


def test_a_closed_standard_output_is_one_line(corit, tmp_path: Path) -> None:
    one_line_error(corit("detect", tmp_path, preexec_fn=lambda: os.close(1)), "standard output is closed")


def test_threads_are_a_number_or_left_to_the_machine(corit) -> None:
    assert parse_workers("auto") is None and parse_workers("3") == parse_workers(3) == 3
    for said in ("0", "-1", "two"):
        result = corit("detect", "no-file.png", "--workers", said)
        assert result.returncode == 2 and "a number from 1 on, or auto" in result.stderr


def test_brackets_in_a_help_are_text(corit) -> None:
    assert "pip install '.[serve]'" in corit("serve", "--help").stdout


def test_version(corit) -> None:
    assert corit("--version").stdout == f"corit {__version__}\n"


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_help_does_not_load_what_computes(command: str | None) -> None:
    code = (
        "import atexit, sys; from corit_cli.cli.app import app; atexit.register(lambda: print(*sys.modules)); "
        f"app({[command, '--help'] if command else ['-h']})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(result.stdout.splitlines()[-1].split())
    assert not modules & {"torch", "numpy", "PIL", "open_clip", "cv2", "sklearn", "matplotlib"}
    commands = {name for name in COMMANDS if f"corit_cli.cli.{name.replace('-', '_')}" in modules}
    assert commands == {command, *(["push"] if command == "train" else [])} - {None}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_says_of_a_command_what_its_own_help_says(command: str) -> None:
    assert COMMANDS[command] == " ".join(inspect.cleandoc(load_command(command).help).split("\n\n")[0].split())


def test_the_embedded_path_does_not_load_open_clip() -> None:
    code = (
        "import sys; from corit_cli import Detector; Detector.load(); "
        "print({'open_clip', 'timm', 'torchvision', 'cv2', 'sklearn', 'matplotlib'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"


def test_unknown_commands_and_options_are_usage_errors(corit) -> None:
    assert corit("conjure").returncode == 2
    assert corit("detect", "--nonsense").returncode == 2
    assert corit("detect").returncode == 2


@pytest.mark.parametrize("next_one", ["--json", "-r", "--csv=out.csv", "-h"])
def test_an_option_does_not_take_the_next_one_for_its_value(corit, tmp_path: Path, next_one: str) -> None:
    result = corit("detect", tmp_path, "--heatmap", next_one)
    one_line_error(result, f"--heatmap needs a value, and {next_one} is another option")


def test_nor_does_one_that_may_be_repeated(corit, tmp_path: Path) -> None:
    result = corit("train", tmp_path, "--degrade", "blur:1", "--degrade", "--overwrite")
    one_line_error(result, "--degrade needs a value, and --overwrite is another option")


# --- completion -----------------------------------------------------------------------------------


def run(*arguments: str, **variables: str) -> str:
    """What ``corit`` prints with these environment variables."""
    result = CliRunner().invoke(app, arguments, env=variables, prog_name="corit")
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("corit de", {"detect"}),
        ("corit detect --fa", {"--fail-on", "--faces"}),
        ("corit detect --faces ", {"off", "auto", "only"}),
        ("corit detect --faces o", {"off", "only"}),
        ("corit detect --fail-on ", {"fake", "uncertain"}),
        ("corit train photos --device c", {"cpu", "cuda"}),
        ("corit detect ", set()),  # the shell then completes file names
    ],
)
def test_completion(line: str, expected: set[str]) -> None:
    found = run(_CORIT_COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=str(line.count(" ")))
    assert set(found.split()) == expected


def test_completion_in_other_shells() -> None:
    found = run(_CORIT_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="corit detect --fac")
    assert "--faces" in found and "--fail-on" not in found
    variables = {"_TYPER_COMPLETE_ARGS": "corit detect --fac", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    assert [line.split()[0] for line in run(_CORIT_COMPLETE="complete_fish", **variables).splitlines()] == ["--faces"]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shell is the one that is named, not the one that runs the tests."""
    monkeypatch.setenv("_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION", "1")


@pytest.mark.parametrize(
    ("name", "file"),
    [("bash", ".bash_completions/corit.sh"), ("zsh", ".zfunc/_corit"), ("fish", ".config/fish/completions/corit.fish")],
)
def test_completion_can_be_installed(told: None, tmp_path: Path, name: str, file: str) -> None:
    assert f"complete_{name}" in run("--show-completion", name)
    run("--install-completion", name, HOME=str(tmp_path))
    assert f"complete_{name}" in (tmp_path / file).read_text()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_without_loading_a_heavy_library(told: None, tmp_path: Path) -> None:
    for name in ("torch", "open_clip", "sklearn", "matplotlib", "cv2", "jinja2"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('slow')")
    script = run("--show-completion", "bash")
    script += "\nCOMP_WORDS=(corit detect --fac); COMP_CWORD=2; _corit_completion corit; echo ${COMPREPLY[@]}"
    environment = {"PATH": f"{CORIT.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment)
    assert result.stdout == "--faces\n" and result.stderr == ""
