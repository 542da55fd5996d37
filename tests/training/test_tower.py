"""Tuning against loops written out over ordinary towers, a run that was never interrupted, and a single process."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from corit_cli.data.images import read_image
from corit_cli.data.manifest import Sample, load_samples
from corit_cli.data.settings import CropConfig
from corit_cli.data.splits import group_split
from corit_cli.data.windows import crop
from corit_cli.detection.checkpoint import Checkpoint
from corit_cli.detection.detector import Detector
from corit_cli.errors import CoritError
from corit_cli.features.cache import Job, extract
from corit_cli.features.extractor import Extractor
from corit_cli.model.loading import Backbone, load_backbone
from corit_cli.model.scope import tuned_backbone, tuned_tensors
from corit_cli.model.settings import CoRITSettings
from corit_cli.progress import Advance, Progress, hush
from corit_cli.training import tower as module
from corit_cli.training.distributed import ALONE
from corit_cli.training.head import balance_weights, fit_head
from corit_cli.training.plan import plan
from corit_cli.training.resume import State
from corit_cli.training.run import Run, Trained
from corit_cli.training.sam import SAM
from corit_cli.training.settings import Recipe, TrainSettings, TuneSettings
from corit_cli.training.tower import Model, best_epoch, set_aside, train_tower
from tests.conftest import Told, photograph, random_tower

SETTINGS = CoRITSettings(("blur:1.0",), cgp=(2, 3), inject_at=(), integrate=(2, 3))
HEAD = TrainSettings(epochs=3, batch_size=8, folds=3)
TUNING = TuneSettings("last:2", lr=1e-3, epochs=2, batch_size=8, micro_batch=3, patience=0, precision="fp32")
SCOPES = ("ln", "last:1", "last:2", "lora:2", "all")

every_scope = pytest.mark.parametrize("scope", SCOPES)


def extractor(settings: CoRITSettings = SETTINGS, mode: str = "both") -> Extractor:
    return Extractor(Backbone(random_tower(), "tiny", "0" * 64), settings, CropConfig(mode, 32))


def run(samples: list[Sample], folder: Path, tuning: TuneSettings = TUNING, **options) -> Trained:
    resume = options.pop("resume", False)
    options = {"settings": HEAD, "probe": False, "extractor": extractor()} | options
    return train_tower(Run(samples, **options), tuning, folder / "resume.safetensors", resume)


def tensors_of(trained: Trained) -> dict[str, Tensor]:
    return {f"head.{n}": t for n, t in trained.checkpoint.head.state_dict().items()} | trained.checkpoint.tuned


def assert_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert set(a) == set(b)
    assert [n for n in a if not torch.equal(a[n], b[n])] == []


@pytest.fixture
def samples(dataset: Path) -> list[Sample]:
    return load_samples(dataset)


def model_of(scope: str = "last:2", e: Extractor | None = None, **changes: object) -> Model:
    torch.manual_seed(0)
    return Model(e or extractor(), replace(TUNING, scope=scope, precision="fp32", **changes), HEAD)


@pytest.fixture(scope="module")
def windows() -> Tensor:
    """(4, 2, 3, 32, 32)"""
    cut = [crop(photograph(i), CropConfig("both", 32)) for i in range(4)]
    return torch.from_numpy(np.stack(cut)).permute(0, 1, 4, 2, 3).float() / 255


def disturb(model: Model) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.tower.parameters():
            if p.requires_grad:
                p += 0.1 * torch.randn(p.shape, generator=generator)


# --- the model --------------------------------------------------------------------------------------------------------


@every_scope
@pytest.mark.parametrize("settings", [SETTINGS, replace(SETTINGS, inject_at=(1,)), SETTINGS.plain()])
def test_the_tuned_tower_is_read_as_an_extractor_reads_it(settings: CoRITSettings, scope: str, windows: Tensor) -> None:
    e = extractor(settings)
    model = model_of(scope, e)
    disturb(model)
    tuned = e.on(tuned_backbone(e.backbone, tuned_tensors(model.tower)))
    images = (windows.permute(0, 1, 3, 4, 2) * 255).round().to(torch.uint8).numpy()
    z = torch.stack([torch.cat([r.mean(0) for r in readings]) for readings in tuned(list(images))])
    with torch.no_grad():
        torch.testing.assert_close(model(windows), model.head.each(z), atol=1e-5, rtol=1e-4)
        before = torch.stack([torch.cat([r.mean(0) for r in readings]) for readings in e(list(images))])
    assert not torch.allclose(z, before, atol=1e-3)


@every_scope
def test_gradient_checkpointing_gives_the_same_gradients(scope: str, windows: Tensor) -> None:
    found = []
    for checkpointed in (False, True):
        model = model_of(scope, grad_checkpoint=checkpointed)
        disturb(model)
        model(windows).square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(found[0], found[1], atol=1e-7, rtol=1e-6)


def test_gradient_checkpointing_runs_trained_blocks_again(windows: Tensor) -> None:
    model, calls = model_of("last:1", grad_checkpoint=True), []
    for number, block in enumerate(model.tower.blocks):
        block.fc.register_forward_hook(lambda *_, number=number: calls.append(number))
    model(windows).sum().backward()
    counts = [calls.count(i) for i in range(4)]
    assert counts[2] > counts[1] and counts[3] == 0  # the deepest layer that is read is 3


def test_frozen_blocks_leave_no_graph(windows: Tensor) -> None:
    model, seen = model_of("last:1"), {}
    for number, block in enumerate(model.tower.blocks):
        block.register_forward_hook(lambda _, __, out, number=number: seen.update({number: out.requires_grad}))
    model(windows)
    assert seen == {0: False, 1: False, 2: True}


@every_scope
def test_lower_precision_is_finite_close_and_keeps_float32_weights(scope: str, windows: Tensor) -> None:
    exact, rough = model_of(scope), model_of(scope)
    rough.precision = "bf16"
    for model in (exact, rough):
        disturb(model)
        model(windows).square().sum().backward()
    a, b = exact(windows), rough(windows)
    assert b.dtype == torch.float32 and not torch.equal(a, b)
    torch.testing.assert_close(a, b, atol=0.05, rtol=0.1)
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in rough.parameters() if p.requires_grad)


# --- the loop ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forge", [(), ("resample@native",)])
def test_training_equals_a_loop_over_whole_forward_passes(
    forge: tuple[str, ...], samples: list[Sample], tmp_path: Path
) -> None:
    """Planned rows with degraded copies and forgeries, balance, SAM, schedule and both step sizes, written out; no
    micro-batches."""
    recipe = Recipe(forge=forge, degrade=("jpeg:30-50",), copies=1)
    tuning, settings = replace(TUNING, rho=0.05), replace(HEAD, optimizer="sgd", balance="source")
    found = run(samples, tmp_path, tuning, settings=settings, recipe=recipe)
    assert found.checkpoint.head.degradation is None

    e = extractor()
    fit_part = set_aside(samples, group_split(samples, 0.3, 0)[0], 0)
    rows = plan(samples, fit_part, recipe, e)
    labels, sources = torch.tensor([r.label for r in rows]), [samples[r.sample].source for r in rows]
    forged = torch.tensor([r.job.variant.forge is not None for r in rows])
    assert forged.any() == bool(forge)
    parts, heads, weights = extract(e, [r.job for r in rows])[0].split(list(e.readings.values()), 1), {}, {}
    for name, z in zip(e.readings, parts, strict=True):
        own = ~forged | (name == "cgp")
        theirs = [s for s, k in zip(sources, own.tolist(), strict=True) if k]
        w = balance_weights(labels[own].tolist(), theirs, "source")
        heads[name] = fit_head(z[own], labels[own], w, settings)
        weights[name] = torch.zeros(len(rows)).masked_scatter(own, w)
    head = torch.nn.ModuleDict(heads)
    cut = np.stack([crop(r.job.variant.apply(read_image(r.job.path)), e.crops) for r in rows])
    images = torch.from_numpy(cut).permute(0, 1, 4, 2, 3).float() / 255  # (n, 2, 3, S, S)
    for block in e.backbone.tower.blocks[1:3]:
        block.requires_grad_(True)
    tower = [p for p in e.backbone.tower.parameters() if p.requires_grad]
    groups = [{"params": tower, "lr": 1e-3}, {"params": list(head.parameters()), "lr": settings.lr / 100}]
    base = torch.optim.SGD(groups, weight_decay=settings.weight_decay, momentum=0.9)
    sam, steps = SAM(base, 0.05), len(rows) // 8
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(base, 2 * steps)
    generator = torch.Generator().manual_seed(0)
    states = []
    for _ in range(2):
        for batch in torch.randperm(len(rows), generator=generator).tensor_split(steps):

            def loss(_: None, batch: Tensor = batch) -> Tensor:
                z = torch.cat([r.corit(images[batch][:, r.windows[0]]).z for r in e.readers], 1)
                parts = z.split(list(e.readings.values()), 1)
                losses = [
                    F.binary_cross_entropy_with_logits(
                        head[name](part), labels[batch].float(), weight=weights[name][batch]
                    )
                    for name, part in zip(e.readings, parts, strict=True)
                ]
                return sum(losses) / len(losses)

            sam.step(loss)
            schedule.step()
        states.append(copy.deepcopy((e.backbone.tower.state_dict(), head.state_dict())))
    tower_state, head_state = states[found.checkpoint.training["tune"]["epoch"] - 1]
    assert set(found.checkpoint.tuned) == {n for n in tower_state if n.startswith(("blocks.1.", "blocks.2."))}
    for name, value in found.checkpoint.tuned.items():
        torch.testing.assert_close(value, tower_state[name], atol=2e-6, rtol=1e-4)
    kept = found.checkpoint.head.heads.state_dict()
    torch.testing.assert_close(dict(kept), dict(head_state), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("scope", ["ln", "lora:2"])
def test_tuning_learns_what_tells_the_fakes(scope: str, samples: list[Sample], tmp_path: Path) -> None:
    found = run(samples, tmp_path, replace(TUNING, scope=scope, lr=3e-3, epochs=3))
    history = found.checkpoint.training["tune"]["epochs"]
    assert history[-1]["loss"] < history[1]["loss"]
    names = tuned_tensors(model_of(scope).tower)
    assert set(found.checkpoint.tuned) == set(names)
    assert all(not torch.equal(t, names[n]) for n, t in found.checkpoint.tuned.items())


@pytest.mark.parametrize("changes", [{"micro_batch": 100}, {"grad_checkpoint": True}])
def test_what_saves_memory_changes_no_result(changes: dict, samples: list[Sample], tmp_path: Path) -> None:
    settings = replace(HEAD, optimizer="sgd")
    once = replace(TUNING, epochs=1)
    a, b = (run(samples, tmp_path, t, settings=settings) for t in (once, replace(once, **changes)))
    torch.testing.assert_close(tensors_of(a), tensors_of(b), atol=1e-5, rtol=1e-4)


def test_a_run_in_lower_precision(samples: list[Sample], tmp_path: Path) -> None:
    found = run(samples, tmp_path, replace(TUNING, precision="bf16", epochs=1))
    assert found.checkpoint.training["tune"]["precision"] == "bf16"
    assert all(t.dtype == torch.float32 and t.isfinite().all() for t in tensors_of(found).values())
    assert not torch.equal(found.checkpoint.tuned["blocks.2.fc.weight"], random_tower().blocks[2].fc.weight)


# --- what is set aside ------------------------------------------------------------------------------------------------


def spread(folder: Path, sources: int = 10) -> list[Sample]:
    out = []
    for i in range(4 * sources):
        path = folder / f"{i}.png"
        photograph(i).save(path)
        out.append(Sample(path, i % 2, f"source{i // 4}"))
    return out


def test_whole_sources_are_set_aside(tmp_path: Path) -> None:
    samples = spread(tmp_path)
    train_part, val_part = group_split(samples, 0.3, 0)
    fit = set_aside(samples, train_part, 0)
    aside = sorted(set(train_part) - set(fit))
    sources = [{samples[i].source for i in part} for part in (fit, aside, val_part)]
    assert not sources[0] & sources[1] and not (sources[0] | sources[1]) & sources[2]
    assert 0.1 <= len(aside) / len(train_part) <= 0.3
    named = [replace(s, split="val" if i in val_part else "train") for i, s in enumerate(samples)]
    # The data's own split says nothing of what is set aside.
    assert set_aside(named, group_split(named, 0.3, 0)[0], 0) == fit


def test_the_tower_never_sees_what_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = spread(tmp_path)
    seen: list[set[Path]] = []
    decoded = module.decoded

    def spy(jobs, *rest):
        seen.append({job.path for job in jobs})
        return decoded(jobs, *rest)

    monkeypatch.setattr(module, "decoded", spy)
    found = run(samples, tmp_path, replace(TUNING, epochs=2))
    aside, trained = seen[0], seen[1]
    assert seen == [aside, trained, aside, trained, aside]
    val = {s.path for s in found.validation.samples}
    assert not aside & trained and not (aside | trained) & val and len(aside | trained | val) == len(samples)
    said = found.checkpoint.training["tune"]["set_aside"]
    rates = found.checkpoint.metrics["held_out_sources"]
    assert said["images"] == len(aside) == rates["real"] + rates["fake"]
    assert set(said["sources"]) == {s.source for s in samples if s.path in aside}


def test_the_best_epoch_is_kept_and_patience_ends_the_run(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.9, 0.7, 0.5, 0.6, 0.5, 0.4])
    monkeypatch.setattr(module, "held_out_loss", lambda *_: next(losses))
    found = run(samples, tmp_path, replace(TUNING, epochs=5, patience=2))
    tuned = found.checkpoint.training["tune"]
    assert [e["held_out"] for e in tuned["epochs"]] == [0.9, 0.7, 0.5, 0.6, 0.5] and tuned["epoch"] == 2
    at_best = load_file(tmp_path / "resume.safetensors")
    for name, tensor in found.checkpoint.tuned.items():
        assert torch.equal(tensor, at_best[f"best/tower.{name}"])
        assert not torch.equal(tensor, at_best[f"weights/tower.{name}"])


def test_every_stage_is_told_of_to_its_end(samples: list[Sample], tmp_path: Path) -> None:
    told = Told()
    run(samples, tmp_path, progress=told)
    titles = ["features", "head", "epoch 1 of 2", "epoch 2 of 2", "tuned features"]
    assert told.complete and [title for title, *_ in told.stages] == titles
    assert all(told.stages[k][3][-1].startswith("loss ") for k in (2, 3))


def test_a_run_that_diverges_says_so(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(CoritError, match=r"diverged in epoch 1.*--tune-lr"):
        run(samples, tmp_path, replace(TUNING, lr=1e38, rho=0.0), settings=replace(HEAD, optimizer="sgd"))


# --- resuming ---------------------------------------------------------------------------------------------------------


def stop_after(epoch: int) -> Progress:
    """Interrupts a run as Ctrl-C does, in the middle of the next epoch."""

    def progress(title: str, total: int | None = None) -> Advance:
        return interrupt if title.startswith(f"epoch {epoch + 1} ") else hush

    def interrupt(count: int = 1, note: str = "") -> None:
        raise KeyboardInterrupt

    return progress


@pytest.mark.parametrize(
    ("optimizer", "changes"),
    [("adamw", {"scope": "lora:2"}), ("sgd", {"scope": "all", "rho": 0.0}), ("adamw", {"precision": "bf16"})],
)
def test_an_interrupted_run_goes_on_bit_for_bit(
    optimizer: str, changes: dict, samples: list[Sample], tmp_path: Path
) -> None:
    tuning, settings = replace(TUNING, **changes), replace(HEAD, optimizer=optimizer)
    whole = run(samples, tmp_path / "whole", tuning, settings=settings)
    with pytest.raises(KeyboardInterrupt):
        run(samples, tmp_path, tuning, settings=settings, progress=stop_after(1))
    resumed = run(samples, tmp_path, tuning, settings=settings, resume=True)
    assert_equal(tensors_of(whole), tensors_of(resumed))
    assert whole.checkpoint.training == resumed.checkpoint.training
    np.testing.assert_array_equal(whole.validation.logits, resumed.validation.logits)
    again = run(samples, tmp_path, tuning, settings=settings, resume=True)  # all epochs done, the outcome lost
    assert_equal(tensors_of(whole), tensors_of(again))


def test_another_run_is_not_gone_on_with(samples: list[Sample], tmp_path: Path) -> None:
    once = replace(TUNING, epochs=1)
    run(samples, tmp_path, once)
    other = Extractor(Backbone(random_tower(), "tiny", "1" * 64), SETTINGS, CropConfig("both", 32))
    for changes, message in (
        ({"tuning": replace(once, lr=1e-4)}, "other --tune settings lr:"),
        ({"tuning": replace(once, scope="ln")}, "other --tune settings scope:"),
        ({"settings": replace(HEAD, balance="none")}, "other settings balance:"),
        ({"recipe": Recipe(match_codec=(70, 80))}, "other recipe match_codec:"),
        ({"extractor": extractor(replace(SETTINGS, alpha=0.5))}, "other CoRIT settings alpha:"),
        ({"extractor": other}, "other backbone:"),
    ):
        with pytest.raises(CoritError, match=message):
            run(samples, tmp_path, resume=True, **{"tuning": once} | changes)


def test_other_images_are_not_gone_on_with(samples: list[Sample], tmp_path: Path) -> None:
    once = replace(TUNING, epochs=1)
    run(samples, tmp_path, once)
    fit = set_aside(samples, group_split(samples, 0.3, 0)[0], 0)
    photograph(1000).save(samples[fit[0]].path)
    with pytest.raises(CoritError, match="other images"):
        run(samples, tmp_path, once, resume=True)


def test_a_damaged_state_is_said(samples: list[Sample], tmp_path: Path) -> None:
    once, state = replace(TUNING, epochs=1), tmp_path / "resume.safetensors"
    run(samples, tmp_path, once)
    for spoil in (lambda: state.write_bytes(state.read_bytes()[:1000]), lambda: save_file({"x": torch.ones(1)}, state)):
        spoil()
        with pytest.raises(CoritError, match="damaged"):
            run(samples, tmp_path, once, resume=True)


def test_a_state_holds_what_was_put_in(tmp_path: Path) -> None:
    state = State({"a": torch.randn(2)}, {"a": torch.randn(2)}, {"0.step": torch.tensor(3.0)}, torch.arange(4))
    state.history.append({"held_out": 0.1 + 0.2})
    state.save(tmp_path / "new" / "state.safetensors", {"x": (1, 2)})
    loaded = State.load(tmp_path / "new" / "state.safetensors", {"x": [1, 2]})
    assert loaded.history == state.history
    for name in ("weights", "best", "optimizer"):
        assert_equal(getattr(loaded, name), getattr(state, name))
    assert torch.equal(loaded.random, state.random)
    assert best_epoch([{"held_out": 0.0}, {"held_out": 2.0}, {"held_out": 1.0}, {"held_out": 1.0}]) == 2


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["lora:2", "all"])
def test_a_saved_detector_says_what_training_said(scope: str, samples: list[Sample], tmp_path: Path) -> None:
    save_file(random_tower().state_dict(), tmp_path / "tower.safetensors")
    (tmp_path / "config.json").write_text('{"tower": {"activation": "quick_gelu", "heads": 4}}')
    backbone = load_backbone(str(tmp_path / "tower.safetensors"))
    e = Extractor(backbone, SETTINGS, CropConfig("both", 32))
    found = run(samples, tmp_path, replace(TUNING, scope=scope, lr=1e-2, epochs=1), extractor=e)
    found.checkpoint.save(tmp_path / "detector")
    assert json.loads((tmp_path / "detector" / "config.json").read_text())["training"]["tune"]["scope"] == scope
    detector = Detector.load(tmp_path / "detector", precision="fp32")
    predictions = list(detector.predict([s.path for s in found.validation.samples]))
    np.testing.assert_allclose([p.probability for p in predictions], found.validation.probabilities[0], atol=1e-5)
    assert detector.extractor.backbone.sha256 != backbone.sha256 == detector.checkpoint.backbone["sha256"]
    assert set(chain(*detector.extractor.fingerprints())).isdisjoint(chain(*e.fingerprints()))

    loaded = Checkpoint.load(tmp_path / "detector")
    assert_equal(loaded.tuned, found.checkpoint.tuned)
    name = next(iter(loaded.tuned))
    loaded.tuned[name] = loaded.tuned[name][..., :-1]
    loaded.save(tmp_path / "detector", overwrite=True)
    with pytest.raises(CoritError, match=f"do not fit.*{name}"):
        Detector.load(tmp_path / "detector")


def test_a_low_rank_detector_is_saved_as_its_factors(samples: list[Sample], tmp_path: Path) -> None:
    e = extractor()
    found = run(samples, tmp_path, replace(TUNING, scope="lora:2", lr=1e-2, epochs=1), extractor=e)
    found.checkpoint.save(tmp_path / "detector")
    kept = load_file(tmp_path / "detector" / "model.safetensors")
    names = [f"blocks.{k}.{layer}.weight" for k in range(3) for layer in ("qkv", "out")]  # layer 3 is read last
    factors = {f"tower.{n}.{part}" for n in names for part in ("up", "down")}
    assert {n for n in kept if n.startswith("tower.")} == factors
    full, tower = 0, copy.deepcopy(e.backbone.tower)
    for name in names:
        weight, up, down = tower.get_parameter(name), kept[f"tower.{name}.up"], kept[f"tower.{name}.down"]
        assert up.shape == (weight.shape[0], 2) and down.shape == (2, weight.shape[1]) and up.any()
        with torch.no_grad():
            weight += up @ down
        full += weight.numel()
    assert sum(kept[n].numel() for n in factors) < 0.1 * full

    by_hand = Extractor(Backbone(tower, "tiny", "2" * 64), SETTINGS, e.crops)
    loaded = e.on(tuned_backbone(e.backbone, Checkpoint.load(tmp_path / "detector").tuned))
    jobs = [Job(s.path) for s in found.validation.samples]
    z = extract(loaded, jobs)[0]
    torch.testing.assert_close(z, extract(by_hand, jobs)[0], atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        logits = found.checkpoint.head(z).double().numpy()
    np.testing.assert_allclose(logits, found.validation.logits[0], atol=1e-5)


# --- several processes ------------------------------------------------------------------------------------------------

WORKER = Path(__file__).with_name("tower_worker.py")


def torchrun(arguments: list[object], port: int) -> list[tuple[str, str]]:
    """Two processes with what torchrun tells them; their standard outputs and errors."""
    root = Path(__file__).parents[2]
    common = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common["PYTHONPATH"] = str(root)  # a worker imports from the tests
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *map(str, arguments)],
            env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
        )
        for rank in range(2)
    ]
    said = [worker.communicate(timeout=200) for worker in workers]
    assert [w.returncode for w in workers] == [0, 0], said
    return said


def free_port() -> int:
    import socket

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_two_processes_are_one(dataset: Path, samples: list[Sample], tmp_path: Path) -> None:
    """Batches of 9 and 10 images, of which the processes take 5 and 4, in parts of 3; one image cannot be read."""
    samples[3].path.write_bytes(b"spoilt")
    cases = [("adamw", "lora:2"), ("sgd", "all")]
    torchrun([dataset, tmp_path / "two", *(f"{o}/{s}" for o, s in cases)], free_port())
    for number, (optimizer, scope) in enumerate(cases):
        tuning = replace(TUNING, scope=scope, batch_size=9)
        settings = replace(HEAD, optimizer=optimizer)
        one = run(samples, tmp_path / "one", tuning, settings=settings, probe=True)
        ranks = [load_file(tmp_path / "two" / f"{number}-{rank}.safetensors") for rank in range(2)]
        assert_equal(*ranks)
        logits = {"logits": torch.from_numpy(one.validation.logits), "probe": torch.from_numpy(one.probe)}
        torch.testing.assert_close(ranks[0], tensors_of(one) | logits, atol=3e-6, rtol=1e-4)
        record = json.loads((tmp_path / "two" / f"{number}.json").read_text())
        assert record["errors"] == [str(samples[3].path)] == [str(s.path) for s, _ in one.errors]
        for ours, theirs in zip(record["epochs"], one.checkpoint.training["tune"]["epochs"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-5)


def test_a_batch_must_reach_all_processes(samples: list[Sample], tmp_path: Path) -> None:
    assert ALONE.share([1, 2, 3]) == [1, 2, 3]
    crowd = Run(samples, extractor(), HEAD, world=replace(ALONE, size=100))
    fit = module.TrainingSet([None] * 50, torch.empty(0), torch.empty(0), [], [], {})
    with pytest.raises(CoritError, match="100 processes"):
        module.tune(crowd, model_of(), fit, fit, TUNING, tmp_path / "x", {})


# --- mistakes ---------------------------------------------------------------------------------------------------------


def refuse(title: str, total: int | None = None) -> Advance:
    """Fails when images are read."""
    raise AssertionError(title)


def test_a_scope_that_does_not_fit_is_said_before_anything_is_read(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(CoritError, match="last:4 asks for more blocks than the 3"):
        run(samples, tmp_path, replace(TUNING, scope="last:4"), progress=refuse)


def test_one_class_set_aside_is_not_enough(tmp_path: Path) -> None:
    samples = [replace(s, label=int(i > 0)) for i, s in enumerate(spread(tmp_path, 4))]
    with pytest.raises(CoritError, match="one class"):
        set_aside(samples, range(len(samples)), 0)


def test_a_file_that_vanishes_is_named(samples: list[Sample], tmp_path: Path) -> None:
    fit = set_aside(samples, group_split(samples, 0.3, 0)[0], 0)

    def vanish(title: str, total: int | None = None) -> Advance:
        if title.startswith("epoch 2 "):
            samples[fit[0]].path.unlink(missing_ok=True)
        return hush

    with pytest.raises(CoritError, match=rf"{samples[fit[0]].path.name}.*cannot now"):
        run(samples, tmp_path, progress=vanish)
