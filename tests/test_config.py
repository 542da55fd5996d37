"""Settings that say themselves what their options are, and commands that are given them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from corit_cli.cli import options
from corit_cli.cli.app import Commands
from corit_cli.cli.options import Given, expand, opt
from corit_cli.config import Settings, option, options_of, restored
from corit_cli.cor.settings import Optimization
from corit_cli.data.settings import CropConfig
from corit_cli.errors import CoritError
from corit_cli.gsnr.settings import StudySettings
from corit_cli.model.settings import CoRITSettings, parse_layers
from corit_cli.training.settings import Recipe, TrainSettings, TuneSettings

#: All that commands are expanded from.
GROUPS = (CoRITSettings, CropConfig, Optimization, Recipe, StudySettings, TrainSettings, TuneSettings)


@dataclass(frozen=True)
class Oven(Settings):
    heat: int = option(180, "How hot.", minimum=50, maximum=250, panel="Baking")
    mode: str = option("fan", "How it is heated.", flag="--oven-mode", choices=("fan", "top", "steam"), panel="Baking")
    racks: tuple[int, ...] = option(
        (2, 3, 4), "Racks in use.", metavar="LIST", parse=parse_layers, without="--no-racks", panel="Baking"
    )
    tins: tuple[str, ...] = option((), "Repeatable.", flag="--tin", many=True, panel="Baking")
    minutes: float | None = option(None, "How long.", minimum=0, panel="Baking")
    light: bool = option(False, "Light inside.", panel="Baking")
    serial: str = "not an option"


# --- settings -------------------------------------------------------------------------------------


def test_options_are_fields_in_order_with_their_flags() -> None:
    found = dict(options_of(Oven))
    assert list(found) == ["heat", "mode", "racks", "tins", "minutes", "light"]
    assert [o.flag for o in found.values()] == ["--heat", "--oven-mode", "--racks", "--tin", "--minutes", "--light"]
    assert found["heat"].help == "How hot." and found["racks"].without == "--no-racks"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"mode": "grill"}, "oven-mode must be fan, top or steam, not 'grill'"),
        ({"heat": 49}, "heat must be at least 50, not 49"),
        ({"heat": 251}, "heat must be at most 250, not 251"),
        ({"minutes": -0.5}, "minutes must be at least 0, not -0.5"),
        ({"minutes": float("nan")}, "minutes must be a finite number, not nan"),
    ],
)
def test_values_that_an_option_does_not_allow_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(CoritError, match=words):
        Oven(**wrong)


def test_bounds_are_allowed_and_none_is_no_number() -> None:
    assert (Oven(heat=50).heat, Oven(heat=250).heat, Oven(minutes=0).minutes, Oven().minutes) == (50, 250, 0, None)


def test_what_was_written_as_json_is_restored() -> None:
    oven = Oven(heat=200, racks=(1, 5), tins=("a", "b"), minutes=7.5)
    kept = json.loads(json.dumps(asdict(oven)))
    assert restored(Oven, kept) == oven
    assert restored(Oven, {"heat": 90}) == Oven(heat=90)  # what is not there keeps its default
    with pytest.raises(TypeError, match="colour"):
        restored(Oven, {"colour": "white"})
    with pytest.raises(CoritError, match="at most 250"):
        restored(Oven, {"heat": 900})


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.__name__)
def test_defaults_are_what_they_allow(group: type[Settings]) -> None:
    assert restored(group, json.loads(json.dumps(asdict(group())))) == group()
    flags = [o.flag for _, o in options_of(group)] + [o.without for _, o in options_of(group) if o.without]
    assert len(flags) == len(set(flags)) and all(flag.startswith("--") for flag in flags)
    assert {name for name, _ in options_of(group)} <= {f.name for f in fields(group)}


# --- commands -------------------------------------------------------------------------------------

Seen = list[tuple[Given, str]]


def command(seen: Seen, shown: Oven | None = None) -> Callable[..., Any]:
    """Runs a small command that takes an oven's settings, and keeps what it was given in ``seen``."""
    app = typer.Typer(cls=Commands)
    app.callback()(lambda: None)

    @app.command()
    @expand(oven=shown or Oven())
    def bake(oven: Given[Oven], name: Annotated[str, opt("--name", "Of the cake.")] = "cake") -> None:
        """Bake."""
        seen.append((oven, name))

    return lambda *arguments: CliRunner().invoke(app, ["bake", *arguments], env={"COLUMNS": "120"})


@pytest.fixture
def seen() -> Seen:
    return []


@pytest.fixture
def bake(seen: Seen) -> Callable[..., Any]:
    return command(seen)


def test_every_option_field_becomes_an_option_of_the_command(bake: Callable[..., Any]) -> None:
    text = bake("--help").stdout
    for words in ("--heat", "--oven-mode", "fan|top|steam", "--racks", "--no-racks", "--tin", "--minutes", "--light"):
        assert words in text
    for words in ("How hot.", "Baking", "180", "2-4", "--name", "Of the cake."):
        assert words in text
    assert "--serial" not in text and "--mode" not in text.replace("--oven-mode", "")


def test_an_option_that_a_group_gains_is_the_command_s_too(seen: Seen) -> None:
    @dataclass(frozen=True)
    class Larger(Oven):
        steam_bursts: int = option(0, "How often it steams.", minimum=0)

    bake = command(seen, Larger())
    assert "--steam-bursts" in bake("--help").stdout
    assert bake("--steam-bursts", "3").exit_code == 0
    (given, _) = seen[0]
    assert given.over(Larger()) == Larger(steam_bursts=3)


def test_only_what_was_given_is_told(bake: Callable[..., Any], seen: Seen) -> None:
    assert bake().exit_code == 0
    assert (seen[0][0].values, seen[0][0].flags, seen[0][1]) == ({}, (), "cake")
    # The default's own value, given, is given.
    done = bake("--heat", "180", "--racks", "5,1-2", "--tin", "round", "--tin", "square", "--light", "--name", "tart")
    assert done.exit_code == 0, done.output
    given, name = seen[1]
    assert given.values == {"heat": 180, "racks": (1, 2, 5), "tins": ("round", "square"), "light": True}
    assert given.flags == ("--heat", "--racks", "--tin", "--light") and name == "tart"
    assert given.over(Oven(heat=99, minutes=4)) == Oven(180, "fan", (1, 2, 5), ("round", "square"), 4, True)


def test_help_shows_the_defaults_of_what_the_command_is_for(seen: Seen) -> None:
    text = command(seen, Oven(heat=77, racks=(1, 9), mode="steam"))("--help").stdout
    assert "77" in text and "1,9" in text and "steam]" in text and "180" not in text


def test_a_flag_may_empty_a_field(bake: Callable[..., Any], seen: Seen) -> None:
    assert bake("--no-racks").exit_code == 0
    given, _ = seen[0]
    assert given.values == {"racks": ()} and given.flags == ("--no-racks",) and given.over(Oven()).racks == ()
    assert bake("--racks", "none").exit_code == 0 and seen[1][0].values == {"racks": ()}
    both = bake("--racks", "1", "--no-racks")
    assert both.exit_code == 2 and "give --racks or --no-racks, not both" in both.stderr and len(seen) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--racks", "two"), "error: 'two' is not a list of layers"),
        (("--heat", "20"), "50"),
        (("--heat", "hot"), "--heat"),
        (("--serial", "7"), "--serial"),
    ],
)
def test_mistakes_on_the_command_line(bake: Callable[..., Any], seen: Seen, arguments: tuple, words: str) -> None:
    done = bake(*arguments)
    assert done.exit_code == 2 and words in done.stderr and not seen


def test_values_are_checked_when_settings_are_made(bake: Callable[..., Any], seen: Seen) -> None:
    assert bake("--oven-mode", "grill").exit_code == 0
    with pytest.raises(CoritError, match="fan, top or steam"):
        seen[0][0].over(Oven())


def test_a_command_may_ask_for_its_context() -> None:
    app = typer.Typer(cls=Commands)
    app.callback()(lambda: None)
    seen = []

    @app.command()
    @expand(oven=Oven())
    def bake(ctx: typer.Context, oven: Given[Oven]) -> None:
        """Bake."""
        seen.append((ctx.get_parameter_source("oven_heat").name, oven.flags))

    assert CliRunner().invoke(app, ["bake", "--heat", "90"]).exit_code == 0
    assert seen == [("COMMANDLINE", ("--heat",))]


def test_words_complete_and_show_themselves() -> None:
    found = options.words("fan", "top", "turbo")
    assert found["metavar"] == "fan|top|turbo" and found["autocompletion"]("t") == ["top", "turbo"]


def test_numbers_of_other_kinds_become_plain_ones() -> None:
    oven = Oven(heat=np.int64(200), minutes=np.float32(0.5), racks=list(np.arange(1, 3)))
    assert oven == Oven(heat=200, minutes=0.5, racks=(1, 2)) and json.loads(json.dumps(asdict(oven)))["racks"] == [1, 2]
    assert [type(v) for v in (oven.heat, oven.minutes, *oven.racks, oven.light)] == [int, float, int, int, bool]
    assert TrainSettings(seed=np.arange(3)[1]).seed == 1
    with pytest.raises(CoritError, match="heat cannot be"):
        Oven(heat=np.float64(180.0))
