"""What a study of GSNR is asked, as options of a command line that loads nothing to show them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from corit_cli.config import Settings, option, spelled
from corit_cli.errors import CoritError
from corit_cli.model.settings import parse_layers

PANEL = "What is measured"
STATES = {"init": ("initial",), "fitted": ("fitted",), "both": ("initial", "fitted")}


def epoch_state(epoch: int) -> str:
    """The name of the head's state after so many epochs."""
    return f"epoch {epoch}" if epoch else "initial"


def epochs_of(state: str) -> float:
    """After how many epochs a state of the head is, infinity for ``fitted``. Raises ValueError for what is no state."""
    named = {"initial": 0.0, "fitted": float("inf")}
    return named[state] if state in named else int(state.removeprefix("epoch "))


def stage(state: str) -> str:
    """A state of the head in words."""
    if state in ("initial", "fitted"):
        return "random head" if state == "initial" else "fitted head"
    epochs = int(epochs_of(state))
    return f"head after {epochs} epoch{'s' if epochs > 1 else ''}"


def parse_all(text: str) -> tuple[int, ...] | None:
    """``all`` to None, or what :func:`~corit_cli.model.settings.parse_layers` reads. Raises CoritError otherwise."""
    return None if text == "all" else parse_layers(text)


def parse_states(text: str) -> tuple[str, ...]:
    """``init``, ``fitted``, ``both``, epochs, or several of these with commas between, to states of the head:
    ``initial``, ``epoch E`` and ``fitted``, in this order. Raises CoritError otherwise."""
    found: set[str] = set()
    for word in text.split(","):
        if word not in STATES and not word.isdecimal():
            raise CoritError(f"--head-state takes init, fitted, both or epochs such as 1,2,5, not {word!r}")
        found.update(STATES.get(word) or (epoch_state(int(word)),))
    return tuple(sorted(found, key=epochs_of))


@dataclass(frozen=True)
class StudySettings(Settings):
    """What is measured.

    ``layers`` of None are all of the backbone's, 0 being the embedding, and the head. Gradients are with respect to
    a layer's parameters; to its output, for the class token and for the mean of the patches; or (``head``) to a linear
    head on every layer's class token (baseline) or class token's contrast (CoRIT), which needs no pass backwards
    through the tower and so bears thousands of samples. Strata are the classes, or the sources within them.
    ``states`` of the head are ``initial``, random on standardised features and of mean logit zero; ``epoch E``,
    after E epochs of its training; and ``fitted``, after the last. ``heads`` are drawn at random, and trained each by
    itself up to the epochs asked for; one alone is fitted to the end, where the start is forgotten.
    """

    layers: tuple[int, ...] | None = option(
        None,
        "Layers, as in 0,3,6-9, or all; 0 is the embedding.",
        metavar="all|LAYERS",
        parse=parse_all,
        spell=lambda value: "all" if value is None else spelled(value),
        shown="all",
        panel=PANEL,
    )
    wrt: str = option(
        "params",
        "Gradients with respect to a layer's parameters, to its output, or to a linear head on its class token alone: "
        "without a pass backwards through the backbone, for thousands of images.",
        choices=("params", "tokens", "head"),
        panel=PANEL,
    )
    samples: int = option(16, "Images to measure on; heads are fitted on others.", minimum=6, panel=PANEL)
    strata: str = option(
        "class",
        "What weighs as the sample has it, so that its differences are no noise: the classes, or sources within them.",
        choices=("class", "source"),
        panel=PANEL,
    )
    states: tuple[str, ...] = option(
        ("initial", "fitted"),
        "The head that the loss is taken at: init, random; fitted; both; or epochs of fitting: init,1,2,5,fitted.",
        flag="--head-state",
        metavar="init|fitted|both|EPOCHS",
        shown="both",
        parse=parse_states,
        spell=lambda value: ",".join(state.removeprefix("epoch ").replace("initial", "init") for state in value),
        panel=PANEL,
    )
    heads: int = option(
        1,
        "Random heads to begin with. The table is of the first; the range over all stands beside it.",
        minimum=1,
        panel=PANEL,
    )
    by: str | None = option(
        None, "Measure every class or source by itself, too; takes twice as long.", metavar="class|source", panel=PANEL
    )
    seed: int = option(0, "Seed of everything that is drawn at random.", panel=PANEL)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in (None, "class", "source"):
            raise CoritError(f"by must be one of class, source, not {self.by!r}")
        if self.by and self.wrt == "head":
            raise CoritError("--by is for gradients of the backbone: leave it out, or give --wrt params or tokens")
        if self.wrt == "head" and self.layers is not None and 0 in self.layers:
            raise CoritError("layer 0's class token is the same for all images: give --wrt head layers from 1 on")
        if self.heads > 1 and set(self.states) == {"fitted"}:
            raise CoritError("--heads are random ones, and only the fitted head is asked for: add init to --head-state")
        if not self.states or not all(re.fullmatch(r"initial|fitted|epoch [1-9]\d*", state) for state in self.states):
            raise CoritError(f"states must be of initial, epoch 1 and so on, and fitted, not {self.states!r}")

    def states_of(self, draw: int) -> tuple[str, ...]:
        """The states that a random head, the first or another, is measured at."""
        return self.states if draw == 0 else tuple(state for state in self.states if state != "fitted")
