"""``corit push``: a detector onto the Hugging Face Hub, with a model card of its measured figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from corit_cli.cli import options
from corit_cli.cli.console import err, escape, out, warn, working
from corit_cli.cli.options import opt

Private = Annotated[bool, opt("--private", "Make a new repository private; push to no public one.")]


def push(
    folder: Annotated[Path, typer.Argument(help="A detector that corit train made.")],
    repository: Annotated[str, typer.Argument(help="What it is to be called on the Hub.", metavar="USER/NAME")],
    private: Private = False,
    config: options.Config = None,
    dry_run: Annotated[bool, opt("--dry-run", "Say what would be uploaded, and upload nothing.")] = False,
) -> None:
    """Put a detector on the Hugging Face Hub: weights, configuration, and a model card made from measured figures.

    \b
    corit push my-detector user/my-detector
    corit push my-detector user/my-detector --private
    corit push my-detector user/my-detector --dry-run

    Nothing else of the folder is uploaded. Log in before with `hf auth login`, or set HF_TOKEN.
    """
    push_detector(folder, repository, private, dry_run)


def push_detector(folder: Path, repository: str, private: bool, dry_run: bool = False) -> None:
    """Say what is uploaded, and upload it. Raises CoritError for a folder that holds no detector, and where the Hub
    takes nothing."""
    from corit_cli.data.forge import parse_forge
    from corit_cli.detection.checkpoint import FILES, Checkpoint
    from corit_cli.model.hub import PREFIX, check_login, check_name, upload
    from corit_cli.report.detector_card import detector_card

    repository = check_name(repository)
    checkpoint = Checkpoint.load(folder)
    trained_with = json.loads((folder / "config.json").read_text()).get("corit", "of an unknown version")
    files: dict[str, Path | bytes] = {"README.md": detector_card(checkpoint, repository, trained_with).encode()}
    files |= {name: folder / name for name in FILES}
    err.print(f"{'Would upload' if dry_run else 'Uploading'} to {repository} on the Hub:")
    for name, content in files.items():
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        what = " (model card of the figures in config.json)" if name == "README.md" else ""
        err.print(f"  {name}, {size:,} bytes{what}", soft_wrap=True)
    names = len(checkpoint.data.get("sources", {}))
    if names:
        err.print(f"config.json names the {names} sources that it was trained and validated on.", soft_wrap=True)
    forges = checkpoint.training.get("recipe", {}).get("forge", ())
    if autoencoders := {forge.source for forge in map(parse_forge, forges)} - {""}:
        named = escape(", ".join(sorted(autoencoders)))
        err.print(f"config.json names the autoencoders of its forgeries: {named}.", soft_wrap=True)
    backbone = checkpoint.backbone["name"]
    if Path(backbone).is_absolute():
        warn(f"its backbone is the local file {backbone}: whoever uses the detector needs the same file there")
    elif backbone != "embedded" and not backbone.startswith(PREFIX):
        warn(f"its backbone is open_clip's {backbone}, which no detector from the Hub may name: see docs/hub.md")
    if dry_run:
        return
    check_login()
    with working("uploading"):
        commit = upload(repository, files, "Detector trained with corit", private)
    out.print(f"Pushed; use it with: corit detect -c {PREFIX}{escape(repository)}@{commit}", soft_wrap=True)
