"""One process of a distributed run, started by test_sam.py: ``sam_worker.py FOLDER RANK``."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from corit_cli.training.sam import SAM

Part = tuple[torch.Tensor, torch.Tensor]


def main(folder: Path, rank: int) -> None:
    cases = torch.load(folder / "cases.pt", weights_only=True)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    results = []
    for case in cases:
        net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        net.load_state_dict(case["weights"])
        model = DistributedDataParallel(net, gradient_as_bucket_view=case["views"])
        syncs: list[int] = []

        def count(syncs, bucket):  # without annotations: as strings, DDP refuses them
            syncs.append(bucket.index())
            return allreduce_hook(None, bucket)

        model.register_comm_hook(syncs, count)
        sam = SAM(
            torch.optim.SGD(net.parameters(), lr=0.3, momentum=0.9),
            case["rho"],
            per_micro_batch=case["per_micro_batch"],
        )
        share = 1 / len(case["x"][rank])
        parts = list(zip(case["x"][rank], case["y"][rank], strict=True))

        def loss(part: Part, model=model, share=share, last=parts[-1], once=case["once"]) -> torch.Tensor:
            with model.no_sync() if once and part is not last else nullcontext():
                logits = model(part[0])
            return share * nn.functional.binary_cross_entropy_with_logits(logits, part[1])

        steps = [sam.step(loss, parts) for _ in range(case["steps"])]
        results.append(
            {"weights": [p.detach() for p in net.parameters()], "syncs": len(syncs), "cosine": steps[0].cosine}
        )
    torch.save(results, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
