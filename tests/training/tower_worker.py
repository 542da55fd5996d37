"""One process of a distributed run: ``tower_worker.py DATA FOLDER OPTIMIZER/SCOPE...``."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from corit_cli.data.manifest import load_samples
from corit_cli.training.distributed import world
from tests.training.test_tower import HEAD, TUNING, run, tensors_of


def main(data: Path, folder: Path, cases: list[str]) -> None:
    folder.mkdir(exist_ok=True)
    with world("cpu") as processes:
        for number, case in enumerate(cases):
            optimizer, scope = case.split("/")
            tuning = replace(TUNING, scope=scope, batch_size=9)
            settings = replace(HEAD, optimizer=optimizer)
            found = run(load_samples(data), folder, tuning, settings=settings, probe=True, world=processes)
            logits = {"logits": torch.from_numpy(found.validation.logits), "probe": torch.from_numpy(found.probe)}
            save_file(tensors_of(found) | logits, folder / f"{number}-{processes.rank}.safetensors")
            if processes.rank == 0:
                record = {
                    "errors": [str(s.path) for s, _ in found.errors],
                    "epochs": found.checkpoint.training["tune"]["epochs"],
                }
                (folder / f"{number}.json").write_text(json.dumps(record))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
