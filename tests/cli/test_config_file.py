"""``--config``: options from a file, and the complete one of a run."""

from __future__ import annotations

import os
import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from corit_cli.cli.app import app, load_command
from corit_cli.cli.config_file import UNKEPT, _without_credentials, complete, key_of, save, tomllib
from corit_cli.config import options_of
from corit_cli.cor.settings import Optimization
from corit_cli.data.settings import CropConfig
from corit_cli.errors import CoritError
from corit_cli.gsnr.settings import StudySettings
from corit_cli.model.settings import DETECTOR, METHOD, CoRITSettings
from corit_cli.training.settings import Recipe, TrainSettings, TuneSettings
from tests.conftest import photograph

COMMANDS = ("detect", "train", "evaluate", "gsnr", "cor-sweep", "push", "serve")
GROUPS = (
    *(TrainSettings(), Recipe(), Recipe(match_codec=(75, 95)), Recipe(match_codec=(90, 90)), TuneSettings("ln")),
    *(METHOD, DETECTOR, CoRITSettings(inject_at=(3, 5, 6)), CropConfig(), Optimization()),
    *(StudySettings(), StudySettings((0, 3, 4, 5)), StudySettings(states=("initial", "epoch 2", "fitted"))),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_a_file_and_every_option_has_a_key_of_its_own(command: str) -> None:
    parameters = load_command(command).params
    keys = [key_of(parameter) for parameter in parameters if key_of(parameter)]
    assert "config" in keys and len(keys) == len(set(keys)) > 3


@pytest.mark.parametrize("settings", GROUPS, ids=lambda settings: type(settings).__name__)
def test_what_is_spelled_is_read_back(settings) -> None:
    for name, option in options_of(type(settings)):
        value = getattr(settings, name)
        if option.parse is not None:
            text = option.spell(value)
            assert value is None if text is None else option.parse(text) == value, (name, text)


@pytest.mark.parametrize(
    ("command", "text", "words"),
    [
        ("train", "fold = 3", ["bad.toml: corit train has no option 'fold': did you mean folds?"]),
        ("train", "qqq = 3", ["has no option 'qqq'; see corit train --help-all"]),
        ("train", 'folds = "3"', ["folds takes a whole number, not '3'"]),
        ("train", "folds = true", ["folds takes a whole number, not true"]),
        ("train", "rho = 'big'", ["rho takes a number"]),
        ("train", "probe = 1", ["probe takes true or false, not 1"]),
        ("train", 'degrade = "jpeg"', ["degrade takes a list, as in ['jpeg']"]),
        ("train", "degrade = [1]", ["each of", "degrade takes text, not 1"]),
        ("train", "cgp = 4", ["cgp takes text, not 4"]),
        ("train", "folds = 1", ["bad.toml: folds: ", "2"]),
        ("train", "[tune]\nscope = 'ln'", ["tune takes text"]),
        ("train", "folds 3", ["is no TOML"]),
        ("train", "config = 'x.toml'", ["has no option 'config'"]),
        ("detect", "fail-on = 'sunday'", ["fail-on: "]),
        ("detect", "frames = 0", ["frames: "]),
        ("detect", "workers = 0", ["workers: ", "auto"]),
        ("gsnr", "sample = 3", ["did you mean samples?"]),
        ("evaluate", "spilt = 'val'", ["did you mean split?"]),
        ("cor-sweep", "rhos = '0.1'", ["did you mean rho?"]),
        ("push", "privat = true", ["did you mean private?"]),
        ("serve", "port = 70000", ["port: "]),
        ("detect", "frames = " + "[" * 5000, ["is nested too deeply"]),
        ("detect", "frames = " + "9" * 5000, ["is no TOML", "digits"]),
        ("detect", f"paths = [0x{'f' * 5000}]", ["is no TOML", "digits"]),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(command: str, text: str, words: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(text)
    result = CliRunner().invoke(app, [command, "--config", str(tmp_path / "bad.toml")])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.stderr
    assert all(word in result.stderr for word in ["error: ", "bad.toml", *words]), result.stderr


@pytest.mark.parametrize("workers", ['"auto"', "2", '"2"'])
def test_what_is_read_by_a_parser_takes_text_and_numbers(workers: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f"workers = {workers}")
    result = CliRunner().invoke(app, ["detect", str(tmp_path), "--config", str(tmp_path / "run.toml")])
    assert result.exit_code == 2 and "no images or videos in" in result.stderr, result.stderr


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "no.toml")])
    assert result.exit_code == 2 and "cannot read" in result.stderr and result.stderr.count("\n") == 1


def test_the_command_line_wins(tmp_path: Path) -> None:
    """What the values came to is told by the first error that they make."""
    (tmp_path / "run.toml").write_text('data = "nowhere"\ntune = "ln"\nfolds = 5\ncgp = "4"\nno-face = true\n')
    config = ["--config", str(tmp_path / "run.toml")]

    def error(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["train", *arguments, *config])
        assert result.exit_code == 2, result.output
        return result.stderr

    assert "--folds would be ignored with --tune ln" in error()
    assert "nowhere does not exist" in error("--tune", "head")
    assert "elsewhere does not exist" in error("elsewhere", "--tune", "head")
    assert "nowhere does not exist" in error("--tune", "head", "--no-cgp")
    assert "not both" in error("--tune", "head", "--no-cgp", "--cgp", "3")


def test_frames_on_the_command_line_win_over_a_rate_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("rate = 1.0\n")
    (tmp_path / "empty").mkdir()
    asked = ["detect", str(tmp_path / "empty"), "--frames", "4"]
    for how, words in (
        (["--config", str(tmp_path / "run.toml")], "no images or videos"),
        (["--rate", "1"], "not both"),
    ):
        result = CliRunner().invoke(app, [*asked, *how])
        assert result.exit_code == 2 and words in result.stderr


@pytest.mark.parametrize("form", ["--json", "--jsonl", "--explain"])
def test_a_form_of_output_on_the_command_line_wins_over_those_in_a_file(tmp_path: Path, form: str) -> None:
    (tmp_path / "run.toml").write_text("json = true\njsonl = true\nexplain = true\n")
    (tmp_path / "empty").mkdir()
    asked = ["detect", str(tmp_path / "empty"), "--config", str(tmp_path / "run.toml")]
    assert "no images or videos" in CliRunner().invoke(app, [*asked, form]).stderr
    assert "not both" in CliRunner().invoke(app, asked).stderr
    assert "not both" in CliRunner().invoke(app, [*asked, "--json", "--jsonl"]).stderr


def test_what_theory_decides_may_not_stand_in_a_file_either(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('rho = "0.1:0.2"\ncompare = "baseline,corit"\nprecision = "bf16"\n')
    result = CliRunner().invoke(app, ["cor-sweep", "--theory", "--config", str(tmp_path / "run.toml")])
    assert result.exit_code == 2 and result.stderr.rstrip().endswith("leave out --rho, --precision")


def test_sources_of_detect_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('paths = ["gone", "lost"]\n')
    config = ["--config", str(tmp_path / "run.toml"), "--fail-on"]
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "run.toml").write_text(f'paths = ["{empty}", "{empty}"]\n')
    result = CliRunner().invoke(app, ["detect", *config, "fake"])
    assert result.exit_code == 2 and f"no images or videos in {empty}, {empty}" in result.stderr
    missing = CliRunner().invoke(app, ["detect"])
    assert missing.exit_code == 2 and "Missing argument" in missing.stderr


@given(
    st.text(string.ascii_letters, min_size=1),
    st.text(string.ascii_letters + string.digits, min_size=8),
    st.sampled_from(["https", "s3", "http"]),
)
def test_credentials_of_urls_are_never_kept(user: str, secret: str, scheme: str) -> None:
    for url in (f"{scheme}://{user}:{secret}@host/a.jpg", f"{scheme}://host/a.jpg?Signature={secret}"):
        assert _without_credentials(url) == f"{scheme}://host/a.jpg"
    assert _without_credentials("photo@home?.jpg") == "photo@home?.jpg"


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    configuration = {"data": 'a\n"b"', "folds": 3, "rho": 0.1, "probe": False, "degrade": ["jpeg", "it's"]}
    save(tmp_path / "run.toml", "train", configuration)
    assert tomllib.loads((tmp_path / "run.toml").read_text()) == configuration
    with pytest.raises(CoritError, match="cannot write"):
        save(tmp_path / "none" / "run.toml", "train", configuration)


def test_the_configuration_beside_a_report_destroys_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    photograph(0).save("photo.png")
    report, beside = ["detect", "photo.png", "--html", "r.html"], Path("r.html.run.toml")

    def error(*arguments: str) -> str:
        result = CliRunner().invoke(app, [*report, *arguments])
        assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.output
        return result.stderr

    assert "are the same file" in error("--csv", str(beside))
    beside.write_text("frames = 3\n")
    assert "no configuration that a run of corit left" in error()
    assert "no configuration that a run of corit left" in error("--config", str(beside))
    assert beside.read_text() == "frames = 3\n" and not Path("r.html").exists()
    beside.unlink()
    beside.mkdir()
    assert "is a folder" in error()
    beside.rmdir()
    Path("mine.html").write_text("frames = 3\n")
    mine = CliRunner().invoke(app, ["detect", "photo.png", "--config", "mine.html", "--html", "mine.html"])
    assert mine.exit_code == 2 and "would write over mine.html" in mine.stderr
    Path("r.toml").write_text("[project]\n")
    for arguments in (report, [*report, "--frames", "5"], ["detect", "--config", str(beside)]):  # renewed
        assert CliRunner().invoke(app, arguments).exit_code == 0
        assert tomllib.loads(beside.read_text())["html"] == str(tmp_path / "r.html")
    assert tomllib.loads(beside.read_text())["frames"] == 5 and Path("r.toml").read_text() == "[project]\n"


@pytest.mark.parametrize(
    "line",
    [
        "detect -r http://host/p?id=5 a.png d/*.png gone --no-provenance --rate 2 --faces off --html r.html",
        "detect - -c hf-hub:user/x@v1 --heatmap maps --csv rows.csv --workers 1 --strict",
        "detect -c det a.png --out rows.parquet --checksum --shard 1/2",
        "evaluate d --robustness jpeg --scores a.csv --scores b.csv --no-cache --protocol leave-source-out --cache c",
        "train d --forge reconstruct:taesd/ --forge reconstruct@part:madebyollin/taesd --degrade jpeg --no-cgp",
        "train d --forge 0.3*reconstruct@native:taesd/ --forge 0.5*resample",
        "train d --local reconstruct@part:taesd --local self_blend --backbone tower.safetensors --log-dir tb --refit",
        "train d --backbone embedded --no-face --val-fraction 0.4 --match-codec 75-95",
        "gsnr --data d --backbone hf-hub:user/clip --layers 1-2 --csv g.csv --plot g.png",
        "cor-sweep --data d --rho 0.1,0.2 --no-geometry --resume sweep --plot c.svg",
        "serve --allow-host a --allow-host b --port 0 --host 0.0.0.0 -c det --queue 3",
        "push det user/x",
    ],
)
def test_a_complete_configuration_means_the_same_elsewhere(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders called as what is no path change nothing, and it matters not where it is read."""
    here = tmp_path / "here"
    for name in ("d", "det", "taesd", "embedded", "hf-hub:user/clip"):
        (here / name).mkdir(parents=True)
    for name in ("a.png", "tower.safetensors", "a.csv", "b.csv"):
        (here / name).touch()
    monkeypatch.chdir(here)
    name, *arguments = line.split()
    command = load_command(name)
    given = complete(command.make_context(name, list(arguments)))
    save(tmp_path / "run.toml", name, given)
    monkeypatch.chdir(tmp_path)
    kept = complete(command.make_context(name, ["--config", str(tmp_path / "run.toml")]))
    if name == "detect" and "http" in line:
        assert given["paths"][0] == "http://host/p?id=5" and kept["paths"][0] == "http://host/p"
        assert "# paths without what may be secret" in (tmp_path / "run.toml").read_text()
        given["paths"][0] = "http://host/p"
    assert kept == given
    relative = [word for word in ("a.png", "d/*.png", "gone", "d", "det", "taesd") if word in arguments]
    assert all(str(here / word) in str(kept) for word in relative)
    assert kept.get("backbone") in (None, "embedded", "hf-hub:user/clip", str(here / "tower.safetensors"))
    if "reconstruct:taesd/" in line:
        assert kept["forge"] == [f"reconstruct:{here}/taesd", "reconstruct@part:madebyollin/taesd"]


def test_names_that_are_not_utf8(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"photo\xff")
    (tmp_path / name).mkdir()
    photograph(0).save(tmp_path / name / "a.png")
    monkeypatch.chdir(tmp_path / name)
    for report in ("r.html", os.fsdecode(b"r\xfe.html")):
        result = CliRunner().invoke(app, ["detect", "a.png", "--html", report])
        assert result.exit_code == 0 and Path(report).is_file(), result.output
        said = Path(f"{report}.run.toml").read_text("utf-8")
        assert "# paths is left out: it is not UTF-8" in said and tomllib.loads(said)["frames"] == 32


def test_the_complete_configuration_gives_the_same_bytes(corit, folder: Path, dataset: Path, tmp_path: Path) -> None:
    tiny = ["--backbone", folder / "tower.safetensors", "--native", "none", "--no-face", "--integrate", "2-3"]
    tiny += ["--spread", "none", "--cgp", "1-2", "--folds", 3, "--no-probe", "--degrade", "jpeg", "--rho", "0.3"]
    first = corit("train", dataset, *tiny, "--out", tmp_path / "a", "--overwrite")
    assert first.returncode == 0, first.stderr
    kept = tomllib.loads((tmp_path / "a" / "run.toml").read_text())
    known = {key_of(p) for p in load_command("train").params}
    assert set(kept) <= known - UNKEPT and kept["rho"] == 0.3 and kept["cgp"] == "1,2" and kept["native"] == "none"
    again = corit("train", "--config", tmp_path / "a" / "run.toml", "--out", tmp_path / "b")
    assert again.returncode == 0, again.stderr
    for name in ("model.safetensors", "config.json", "log.csv"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert tomllib.loads((tmp_path / "b" / "run.toml").read_text()) == kept | {"out": str(tmp_path / "b")}
    there = CliRunner().invoke(app, ["train", "--config", str(tmp_path / "a" / "run.toml")])
    assert there.exit_code == 2 and "already exists" in there.stderr
