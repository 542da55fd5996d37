from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corit_cli.model.fusion import FusedHead
from corit_cli.model.head import Head
from corit_cli.training.fusion import HeldOut, join


def fused(widths: tuple[int, ...] = (3, 5, 2)) -> FusedHead:
    torch.manual_seed(0)
    head = FusedHead({f"r{k}": Head(width) for k, width in enumerate(widths)})
    head.weights[:], head.bias[:] = torch.randn(2 ** len(widths), len(widths)), torch.randn(2 ** len(widths))
    return head


def test_a_single_head_passes_through() -> None:
    head, z = Head(4), torch.randn(6, 4)
    torch.testing.assert_close(FusedHead({"hri": head})(z), head(z))


@given(st.lists(st.booleans(), min_size=3, max_size=3))
def test_the_fused_logit_is_the_weighted_sum_of_those_that_are_there(there: list[bool]) -> None:
    head, z = fused(), torch.randn(4, 10)
    parts = [part.clone() for part in head.split(z)]
    for part, has in zip(parts, there, strict=True):
        part[:] = part if has else float("nan")
    found = head(torch.cat(parts, 1))
    if not any(there):
        assert found.isnan().all()
        return
    number = sum(2**r for r, has in enumerate(there) if has)
    heads = zip(head.weights[number], head.heads.values(), parts, there, strict=True)
    expected = head.bias[number] + sum(w * one(part) for w, one, part, has in heads if has)
    torch.testing.assert_close(found, expected)
    shares = head.shares(head.each(torch.cat(parts, 1)))
    torch.testing.assert_close(shares.sum(1) + head.bias[number], found)
    assert not shares[:, [not has for has in there]].any()


def readings(n: int = 4000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of three heads: two that know something of their own, on other scales, and one that knows nothing."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = (2 * y[:, None] - 1) * [1.0, 0.5, 0.0] + rng.standard_normal((n, 3))
    return torch.tensor(x * [10, 0.1, 1] + [3, 0, -5]).float(), torch.tensor(y)


def test_joining_finds_the_log_odds() -> None:
    logits, y = readings()
    head = fused((2, 2, 2))
    join(head, logits, y)
    # For independent Gaussians the true log odds are linear, and each reading's own are added.
    truth = 2 * (logits[:, 0] - 3) / 10 + 2 * 0.5 * logits[:, 1] / 0.1
    assert np.corrcoef(head.fuse(logits), truth)[0, 1] > 0.98
    assert float((head.fuse(logits) / truth).median()) == pytest.approx(1, abs=0.1)
    assert abs(head.weights[7, 2]) < 0.1 and 0.5 < head.weights[7, 0] / head.weights[7, 1] * 50 < 1
    # Where one is missing, the others speak for themselves.
    alone = logits.clone()
    alone[:, [0, 2]] = float("nan")
    assert (head.fuse(alone) / (2 * 0.5 * logits[:, 1] / 0.1)).median() == pytest.approx(1, abs=0.1)


def test_copies_of_one_reading_are_not_counted_twice() -> None:
    logits, y = readings()
    head = fused((2, 2))
    join(head, logits[:, [0, 0]], y)
    one, both = head.weights[1, 0], head.weights[3]
    torch.testing.assert_close(both, torch.full((2,), float(one) / 2), rtol=0.02, atol=0)


def of_sources(counts: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Logits of two heads, the first of which knows the first source alone and the second all others, with labels and
    sources; the images of each source are repeated ``counts`` times."""
    rng, rows = np.random.default_rng(0), []
    for k, count in enumerate(counts):
        y = np.arange(60) % 2
        x = (2 * y[:, None] - 1) * ([1.0, 0.0] if k == 0 else [0.0, 1.0]) + rng.standard_normal((60, 2))
        rows += [(x, y, [f"s{k}"] * 60)] * count
    x, y = (torch.from_numpy(np.concatenate(parts)) for parts in ([r[0] for r in rows], [r[1] for r in rows]))
    return x.float(), y, [name for r in rows for name in r[2]]


def test_a_source_weighs_the_same_however_many_images_it_has() -> None:
    found = {}
    for counts in ((1, 1, 1), (20, 1, 1)):
        for balance in ("even", "class"):
            logits, y, sources = of_sources(counts)
            head = fused((2, 2))
            join(head, logits, y, sources=sources, balance=balance)
            found[counts, balance] = head.weights[3] / head.weights[3].sum()
    torch.testing.assert_close(found[(20, 1, 1), "even"], found[(1, 1, 1), "even"], rtol=1e-3, atol=0)
    torch.testing.assert_close(found[(1, 1, 1), "class"], found[(1, 1, 1), "even"], rtol=1e-3, atol=0)
    assert found[(20, 1, 1), "class"][0] > 0.7 > 0.5 > found[(1, 1, 1), "even"][0]


def test_without_a_balance_classes_still_weigh_the_same() -> None:
    logits, y, sources = of_sources((1, 1, 1))
    keep = (y == 1) | (torch.arange(len(y)) % 6 == 0)  # two thirds of the real ones are gone
    heads = [fused((2, 2)) for _ in range(2)]
    join(heads[0], logits, y, keep=keep, sources=sources, balance="none")
    join(heads[1], logits[keep], y[keep])
    torch.testing.assert_close(heads[0].weights, heads[1].weights)
    torch.testing.assert_close(heads[0].bias, heads[1].bias)


def test_what_is_held_out_joins_by_its_sources() -> None:
    logits, y, sources = of_sources((20, 1, 1, 1))
    folds, nobody = torch.arange(len(y)) // 2 % 2, torch.zeros(len(y), dtype=torch.bool)
    heads = {0: fused((2, 2)), 1: fused((2, 2))}
    found = HeldOut(list(range(len(y))), logits, y, folds, nobody, heads, sources, "even").joined()
    for fold, head in heads.items():
        join(head, logits, y, nobody, folds != fold, sources, "even")
        torch.testing.assert_close(found[fold].weights[3], head.weights[3])
        assert head.weights[3, 1] > head.weights[3, 0]


def test_a_reading_that_some_image_lacks_is_joined_by_the_images_that_have_it() -> None:
    logits, y = readings()
    whole = fused((2, 2))
    join(whole, logits[:, :2], y)
    logits[::2, 2] = float("nan")
    logits[1::2, 2] += 3.0 * (2 * y[1::2] - 1)  # and knows much where it is there
    head, seen = fused((2, 2, 2)), fused((2, 2, 2))
    join(head, logits, y)
    join(seen, logits[1::2], y[1::2])
    for number in range(1, 4):
        used = torch.tensor([number & 1, number >> 1])
        torch.testing.assert_close(head.weights[number, :2] * used, whole.weights[number] * used)
    torch.testing.assert_close(head.weights[4:], seen.weights[4:])
    torch.testing.assert_close(head.bias[4:], seen.bias[4:])
    assert head.weights[4, 2] > 1 and head.weights[7, 2] > 1


def test_a_face_is_not_heard_where_a_picture_is_judged() -> None:
    head = FusedHead({"hri": Head(3), "cgp": Head(5), "face": Head(2)})
    head.weights[:], head.bias[:] = torch.rand(8, 3) + 0.5, torch.linspace(-1, 1, 8)
    z = torch.randn(6, 10)
    lacking = z.clone()
    lacking[:, 8:] = float("nan")
    assert head.of_pictures == ["hri", "cgp"]
    assert torch.equal(head(z), head(lacking)) and not torch.equal(head(z), head.fuse(head.each(z)))
    heard = head.hearing(head.each(z), ["face", "cgp"])
    assert heard[:, 0].isnan().all() and torch.equal(heard[:, 1:], head.each(z)[:, 1:])


def test_what_is_held_out_of_pictures_does_not_hear_faces_and_of_faces_what_it_should() -> None:
    logits, y = readings(300)
    logits[::3, 2] = float("nan")
    folds, nobody = torch.arange(300) // 5 % 2, torch.zeros(300, dtype=torch.bool)
    heads = {fold: FusedHead({"hri": Head(2), "cgp": Head(2), "face": Head(2)}) for fold in range(2)}
    found = HeldOut(list(range(300)), logits, y, folds, nobody, heads)
    faceless = torch.cat([logits[:, :2], torch.full((300, 1), float("nan"))], 1)
    joined = found.joined()
    for fold, head in joined.items():
        own = folds == fold
        torch.testing.assert_close(found.fused()[own], head.fuse(faceless[own]))
        by_face = head.fuse(head.hearing(logits[own], ["cgp", "face"]))
        lacks = logits[own, 2].isnan()
        torch.testing.assert_close(found.fused("cgp", "face")[own][~lacks], by_face[~lacks])
        assert found.fused("cgp", "face")[own][lacks].isnan().all()


def test_what_one_kind_lacks_without_the_fold_is_told_by_both_kinds_without_it() -> None:
    logits, y = readings()
    copies, folds = torch.arange(len(y)) % 2 == 1, torch.arange(len(y)) // 2 % 2
    logits[copies & (y == 1) & (folds == 1), 2] = float("nan")
    head, plain = (FusedHead(dict(fused((2, 2, 2)).heads), Head(4)) for _ in range(2))
    told = torch.cat([logits, torch.where(copies, 3.0, -3.0)[:, None]], 1)
    join(head, told, y, copies, folds == 1)
    changed = told.clone()
    changed[folds == 0] += 5.0 * torch.randn(4)  # what is said of the fold itself must not matter
    join(plain, changed, y, copies, folds == 1)
    for joint, other in zip(head.joints, plain.joints, strict=True):
        torch.testing.assert_close(joint.weights, other.weights)


def test_the_state_is_heard_whatever_readings_are() -> None:
    head = FusedHead({"hri": Head(3), "cgp": Head(5), "face": Head(2)}, Head(8))
    each = head.each(torch.randn(6, 10))
    assert torch.equal(head.hearing(each, ["cgp", "face"])[:, 1:], each[:, 1:])


def test_each_fold_is_joined_by_the_others() -> None:
    logits, y = readings(300)
    folds = torch.arange(300) % 3
    head = fused((2, 2, 2))
    nothing = torch.zeros(300, dtype=torch.bool)
    found = HeldOut(list(range(300)), logits, y, folds, nothing, dict.fromkeys(range(3), head)).fused()
    one = fused((2, 2, 2))
    join(one, logits[folds != 1], y[folds != 1])
    torch.testing.assert_close(found[folds == 1], one.fuse(logits[folds == 1]))
    torch.testing.assert_close(head.weights, fused((2, 2, 2)).weights)  # as it was


def test_a_fold_without_which_one_class_is_left_is_joined_by_all() -> None:
    logits, y = readings(300)
    head = fused((2, 2, 2))
    join(head, logits, y)
    nothing = torch.zeros(300, dtype=torch.bool)
    found = HeldOut(list(range(300)), logits, y, y.clone(), nothing, dict.fromkeys(range(2), head)).fused()
    torch.testing.assert_close(found, head.fuse(logits))


def test_without_the_last_reading_it_judges_as_where_that_is_missing() -> None:
    head, z = fused(), torch.randn(6, 10)
    z[:, 8:] = float("nan")
    rest = head.without("r2")
    assert rest.names == ["r0", "r1"]
    torch.testing.assert_close(rest(z[:, :8]), head(z))
    for wrong in ("r0", "nothing"):
        with pytest.raises(ValueError, match="not the last"):
            head.without(wrong)


def test_a_set_that_one_class_lacks_is_joined_as_the_largest_set_within_it() -> None:
    logits, y = readings()
    logits[y == 1, 2] = float("nan")  # no fake has the third reading
    head = fused((2, 2, 2))
    join(head, logits, y)
    for number in (4 + 3, 4 + 1, 4 + 2):
        within = number - 4
        used = torch.tensor([within & 1, within >> 1 & 1, 0])
        assert torch.equal(head.weights[number], head.weights[within] * used)
        assert head.bias[number] == head.bias[within]
    full = torch.tensor([[1.0, 0.1, 5.0], [1.0, 0.1, float("nan")]])
    assert head.fuse(full)[0] == head.fuse(full)[1]
    # So too where it is one fold's doing: what the other folds cannot tell is told by all.
    logits, y = readings()
    folds = torch.arange(len(y)) % 2
    logits[(folds == 0) & (y == 1), 2] = float("nan")
    nobody = torch.zeros(len(y), dtype=torch.bool)
    held_out = HeldOut(list(range(len(y))), logits, y, folds, nobody, {0: fused((2, 2, 2)), 1: fused((2, 2, 2))})
    joined, everyone = held_out.joined(), FusedHead(dict(fused((2, 2, 2)).heads))
    join(everyone, logits, y)
    assert torch.equal(joined[1].weights[4], everyone.weights[4])
    assert not torch.equal(joined[1].weights[3], everyone.weights[3])
    assert torch.equal(joined[1].weights[7], everyone.weights[7])


def aware(widths: tuple[int, ...] = (3, 5, 2), tells: int = 8) -> FusedHead:
    """A head that tells degraded pictures by the first features."""
    torch.manual_seed(1)
    degradation = Head(tells)
    torch.nn.init.normal_(degradation.layers[0].weight, std=3)
    head = FusedHead({f"r{k}": Head(width) for k, width in enumerate(widths)}, degradation)
    for joint in head.joints:
        joint.weights[:], joint.bias[:] = torch.randn_like(joint.weights), torch.randn_like(joint.bias)
    return head


def test_between_untouched_and_degraded_it_goes_by_the_probability() -> None:
    head, z = aware(), torch.randn(50, 10)
    z[::2, 8:] = float("nan")  # where the last reading is missing, too
    untouched, degraded = (FusedHead(dict(head.heads)) for _ in range(2))
    for plain, joint in zip((untouched, degraded), head.joints, strict=True):
        plain.weights, plain.bias = joint
    t = head.degradation(z[:, :8]).sigmoid()
    assert t.min() < 0.2 and t.max() > 0.8
    torch.testing.assert_close(head(z), (1 - t) * untouched(z) + t * degraded(z))
    each = head.each(z)
    torch.testing.assert_close(head.degraded(each), t)
    torch.testing.assert_close(head.shares(each[3]), head.shares(each)[3])
    # A picture of which nothing tells counts as untouched.
    each[:, -1] = float("nan")
    torch.testing.assert_close(head.fuse(each), untouched(z))
    rest = head.without("r2")
    torch.testing.assert_close(rest(z[::2, :8]), head(z[::2]))
    torch.testing.assert_close(head.untouched()(z), untouched(z))
    with pytest.raises(ValueError, match="told by r1, too"):
        rest.without("r1")


def test_each_kind_of_picture_is_joined_by_what_is_said_of_its_own() -> None:
    logits, y = readings()
    copies = torch.arange(len(y)) % 2 == 1
    # What the first knows is lost in copies.
    logits[copies, 0] = 10 * torch.randn(int(copies.sum()), generator=torch.Generator().manual_seed(1))
    heads, tells = dict(fused((2, 2, 2)).heads), Head(6)
    head = FusedHead(heads, tells)
    told = torch.cat([logits, torch.where(copies, 30.0, -30.0)[:, None]], 1)
    join(head, told, y, copies)
    for state, joint in zip((~copies, copies), head.joints, strict=True):
        plain = FusedHead(heads)
        join(plain, logits[state], y[state])
        torch.testing.assert_close(joint.weights, plain.weights)
        torch.testing.assert_close(joint.bias, plain.bias)
    assert head.weights[7, 0] > 0.1 > 0.05 > abs(head.degraded_weights[7, 0])
    # Over folds alike, and so one reading by itself.
    folds = torch.arange(len(y)) // 2 % 2
    found = HeldOut(list(range(len(y))), told, y, folds, copies, dict.fromkeys(range(2), head))
    other = FusedHead(heads, tells)
    join(other, told[folds == 1], y[folds == 1], copies[folds == 1])
    torch.testing.assert_close(found.fused()[folds == 0], other.fuse(told[folds == 0]))
    alone = other.fuse(other.hearing(told, ["r1"]))
    torch.testing.assert_close(found.fused("r1")[folds == 0], alone[folds == 0])
    torch.testing.assert_close(alone[copies], other.degraded_weights[2, 1] * logits[copies, 1] + other.degraded_bias[2])


def test_where_a_kind_lacks_a_class_both_are_joined_by_all() -> None:
    logits, y = readings()
    copies = (torch.arange(len(y)) % 2 == 1) & (y == 0)  # no fake was degraded
    head, plain = FusedHead(dict(fused((2, 2, 2)).heads), Head(6)), FusedHead(dict(fused((2, 2, 2)).heads))
    join(head, torch.cat([logits, torch.zeros(len(y), 1)], 1), y, copies)
    join(plain, logits, y)
    for joint in head.joints:
        assert torch.equal(joint.weights, plain.weights) and torch.equal(joint.bias, plain.bias)


def test_a_reading_that_fakes_of_one_kind_lack_is_joined_there_by_both_kinds() -> None:
    logits, y = readings()
    copies = torch.arange(len(y)) % 2 == 1
    logits[copies & (y == 1), 2] = float("nan")
    head, shown = FusedHead(dict(fused((2, 2, 2)).heads), Head(4)), logits[:, 2].isfinite()
    assert head.telling.tolist() == [True, True, False]
    join(head, torch.cat([logits, torch.where(copies, 3.0, -3.0)[:, None]], 1), y, copies)
    for by, own, joint in zip((~copies, shown), (~copies, copies), head.joints, strict=True):
        with_it, without = (FusedHead(dict(fused(widths).heads)) for widths in ((2, 2, 2), (2, 2)))
        join(with_it, logits[by], y[by])
        join(without, logits[own, :2], y[own])
        torch.testing.assert_close(joint.weights[4:], with_it.weights[4:])
        torch.testing.assert_close(joint.weights[:4, :2], without.weights)


def test_a_single_reading_is_joined_by_the_kind_of_picture() -> None:
    logits, y = readings()
    copies = torch.arange(len(y)) % 2 == 1
    head = aware((2,), 2)
    join(head, torch.cat([logits[:, :1], torch.where(copies, 30.0, -30.0)[:, None]], 1), y, copies)
    for joint in head.joints:
        assert joint.weights[1, 0] == pytest.approx(2 / 10, rel=0.15)
        assert joint.bias[1] == pytest.approx(-2 * 3 / 10, rel=0.3)
