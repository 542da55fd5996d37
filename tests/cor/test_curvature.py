"""Oracles: quadratics, whose geometry is known in closed form, and Hessians in full.

The second half checks the formulas of docs/theory.md, section by section.
"""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from corit_cli.cor.curvature import (
    Loss,
    Params,
    batch_gradients,
    edge_radius,
    geometry,
    hessian_vector,
    local_radius,
    signal_and_noise,
)
from corit_cli.cor.spectrum import WRITTEN_OUT, extreme_eigenvalues

SIZE, LR = 4, 0.1


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def symmetric(*eigenvalues: float, seed: int = 0) -> Tensor:
    q, _ = torch.linalg.qr(normal(len(eigenvalues), len(eigenvalues), seed=seed))
    return q @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ q.T


def disjoint_batches(count: int, size: int) -> list[list[int]]:
    """As many random minibatches as there are, no sample in two of them."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return order[: count - count % size].view(-1, size).tolist()


def quadratic(hessian: Tensor, noise: Tensor) -> Loss:
    """Losses w.Hw / 2 + e_i.w, so that sample i's gradient is Hw + e_i; noise (N, d)."""

    def loss(params: Params, indices) -> Tensor:
        w = params["w"]
        return 0.5 * w @ hessian @ w + noise[torch.as_tensor(indices)].mean(0) @ w

    return loss


def classifier(hidden: int = 0, n: int = 48, d: int = 3) -> tuple[Loss, Params]:
    """Logistic regression, or an MLP with a hidden layer, on two overlapping clouds."""
    labels = (torch.arange(n) % 2).double()
    x = normal(n, d) + labels[:, None]
    shapes = {"b": (), "v": (hidden,), "V": (hidden, d)} if hidden else {"b": (), "v": (d,)}
    params = {name: normal(*shape, seed=k) for k, (name, shape) in enumerate(shapes.items())}

    def loss(p: Params, indices) -> Tensor:
        i = torch.as_tensor(indices)
        features = torch.tanh(x[i] @ p["V"].T) if hidden else x[i]
        return F.binary_cross_entropy_with_logits(features @ p["v"] + p["b"], labels[i])

    return loss, params


def flat_loss(loss: Loss, params: Params, indices):
    """The loss as a function of one vector, for torch.func.hessian."""
    sizes = [p.numel() for p in params.values()]

    def of(vector: Tensor) -> Tensor:
        parts = vector.split(sizes)
        return loss({k: part.view_as(p) for (k, p), part in zip(params.items(), parts, strict=True)}, indices)

    return of, torch.cat([p.flatten() for p in params.values()])


def full_hessian(loss: Loss, params: Params, indices) -> Tensor:
    return torch.func.hessian(flat_loss(loss, params, indices)[0])(flat_loss(loss, params, indices)[1])


# --- The Hessian


@pytest.mark.parametrize("hidden", [0, 5])
def test_hessian_times_vector_agrees_with_the_hessian_in_full(hidden):
    loss, params = classifier(hidden)
    indices = range(10, 30)
    vector = {name: normal(*p.shape, seed=9) for name, p in params.items()}
    found = hessian_vector(loss, params, indices, vector)
    expected = full_hessian(loss, params, indices) @ torch.cat([v.flatten() for v in vector.values()])
    assert torch.cat([v.flatten() for v in found.values()]).numpy() == pytest.approx(expected.numpy())
    assert all(found[name].shape == p.shape and not p.requires_grad for name, p in params.items())


def test_attention_has_a_hessian_too():
    """Fused attention has no second derivative, so the plain kernel must be taken."""
    x = normal(2, 2, 5, 4).float()
    params = {"w": normal(4, 4).float(), "unused": torch.ones(3)}

    def loss(p: Params, indices) -> Tensor:
        return F.scaled_dot_product_attention(x @ p["w"], x, x)[indices].square().mean()

    found = hessian_vector(loss, params, [0, 1], {"w": torch.ones(4, 4), "unused": torch.ones(3)})
    step = 1e-3 * torch.ones(4, 4)
    ends = [batch_gradients(loss, {**params, "w": params["w"] + s}, [[0, 1]])[0, :16] for s in (step, -step)]
    assert found["w"].flatten().numpy() == pytest.approx(((ends[0] - ends[1]) / 2e-3).numpy(), rel=0.02, abs=1e-3)
    assert not found["unused"].any()


SPECTRA = [
    ((3.0, 1.0, -1.0), 3.0, 3.0),
    ((-3.0, 1.0, 0.5), 3.0, 1.0),
    ((2.0, -2.0, 0.0), 2.0, 2.0),
    ((-2.0, -1.0, -1.5), 2.0, -1.0),
    ((-2.0, -2.0), 2.0, -2.0),
    ((-5.0, 0.0), 5.0, 0.0),
    ((0.0, 0.0), 0.0, 0.0),
]


@pytest.mark.parametrize(("eigenvalues", "beta", "top"), SPECTRA)
def test_ends_of_known_spectra(eigenvalues, beta, top):
    h = symmetric(*eigenvalues)
    found = extreme_eigenvalues(lambda v: h @ v, normal(len(h), seed=1), tolerance=1e-9, most=1000)
    assert (found.smoothness, found.curvature) == pytest.approx((beta, top), rel=1e-4, abs=1e-9)
    assert found.converged and found.iterations < 1000


@pytest.mark.parametrize("size", [WRITTEN_OUT + 1, 60])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("eigenvalues", "beta", "top"), SPECTRA)
def test_ends_of_known_spectra_that_are_too_large_to_write_out(eigenvalues, beta, top, dtype, size):
    between = np.linspace(min(eigenvalues), max(eigenvalues), size - len(eigenvalues))
    h, asked = symmetric(*eigenvalues, *between).to(dtype), []
    found = extreme_eigenvalues(lambda v: (asked.append(v.dtype), h @ v)[1], normal(size, seed=1).to(dtype))
    assert (found.smoothness, found.curvature) == pytest.approx((beta, top), rel=1e-4, abs=1e-4 * beta)
    assert found.converged and found.iterations == len(asked) < 200 and set(asked) == {dtype}


@pytest.mark.parametrize("others", [0.0, 1e-3])
@pytest.mark.parametrize(("alone", "top"), [(7.0, 7.0), (-7.0, 0.0)])
def test_one_direction_that_bends_is_found_at_once(alone, top, others):
    h = symmetric(alone, *np.linspace(-others, others, 300))
    found = extreme_eigenvalues(lambda v: h @ v, normal(301))
    assert (found.smoothness, found.curvature) == pytest.approx((7.0, top), abs=2e-3)
    assert found.converged and found.iterations < 200


def test_a_spectrum_without_a_gap_that_has_not_settled_says_so():
    h = torch.diag(torch.linspace(0.9, 1.0, 200, dtype=torch.float64))
    found = extreme_eigenvalues(lambda v: h @ v, normal(200), tolerance=1e-12, most=10)
    assert not found.converged
    assert 0.9 < found.smoothness < 1.0  # from below
    longer = extreme_eigenvalues(lambda v: h @ v, normal(200), tolerance=1e-12, most=2000)
    assert longer.converged and longer.smoothness == pytest.approx(1.0, abs=1e-9)
    assert longer.iterations > found.iterations


@pytest.mark.parametrize("size", [3, 60])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_curvature_that_is_not_finite_is_refused(value, size):
    with pytest.raises(ValueError, match="no finite curvature"):
        extreme_eigenvalues(lambda v: value * v, normal(size))


# --- Signal and noise


def test_signal_and_noise_are_unbiased_and_per_sample():
    rng, runs, d, k = np.random.default_rng(0), 2000, 30, 6
    mean = 0.1 * np.ones(d)
    found = []
    for _ in range(runs):
        samples = rng.standard_normal((k, SIZE, d)) * 0.5 + mean
        found.append(signal_and_noise(torch.tensor(samples.mean(1)), SIZE))
    signal, noise = np.mean(found, axis=0)
    assert signal == pytest.approx(0.3, rel=0.05)
    assert noise == pytest.approx(0.25 * d, rel=0.01)


def test_batches_balanced_by_class_are_unbiased_and_random_ones_of_a_balanced_sample_are_not():
    """Class means far apart are no noise between batches that hold both classes alike, and take no signal away."""
    rng, runs, d, k = np.random.default_rng(1), 2000, 6, 6
    n = k * SIZE
    mu, delta = 0.5 * np.eye(d)[0], 2.0 * np.eye(d)[1]
    sign, spread = np.tile([-1.0, 1.0], n // 2)[:, None], np.tile([0.7, 1.0], n // 2)[:, None]
    balanced, mixed, square = [], [], []
    for _ in range(runs):
        g = mu + sign * delta + spread * rng.standard_normal((n, d))
        batches = g.reshape(k, SIZE, d).mean(1)
        balanced.append(signal_and_noise(torch.tensor(batches), SIZE))
        square.append(np.square(batches).sum(1).mean())
        mixed.append(signal_and_noise(torch.tensor(rng.permutation(g).reshape(k, SIZE, d).mean(1)), SIZE)[0])
    within = d * (0.7**2 + 1.0) / 2
    found = np.column_stack([balanced, square])  # signal, noise, ||batch gradient||^2
    assert (abs(found.mean(0) - (0.25, within, 0.25 + within / SIZE)) < 2.5 * found.std(0) / runs**0.5).all()
    assert np.mean(mixed) == pytest.approx(0.25 - 4.0 / (n - 1), abs=3 * np.std(mixed) / runs**0.5)


@given(st.integers(0, 1000), st.integers(2, 6))
def test_signal_is_the_mean_product_of_different_batches(seed, k):
    g = normal(k, 3, seed=seed)
    products = (g @ g.T)[~torch.eye(k, dtype=torch.bool)]
    signal, noise = signal_and_noise(g, SIZE)
    assert signal == pytest.approx(float(products.mean()), abs=1e-12)
    assert noise == pytest.approx(SIZE * float(g.T.cov().trace()))


# --- The whole geometry, on quadratics


def test_a_noiseless_saddle_in_closed_form():
    h = symmetric(2.0, -3.0, 1.0)
    w = torch.linalg.eigh(h).eigenvectors @ torch.tensor([1.0, 0.2, 0.1], dtype=torch.float64)
    g = geometry(quadratic(h, torch.zeros(12, 3).double()), {"w": w}, disjoint_batches(12, SIZE), LR, precision=1e-6)
    gradient = h @ w
    norm = float(gradient.norm())
    slope = float(gradient @ h @ gradient) / norm**2  # curvature along the gradient, here negative
    assert (g.gradient_norm, g.batch_norm) == pytest.approx((norm, norm))
    assert (g.smoothness, g.curvature) == pytest.approx((3.0, 2.0), rel=1e-3)
    assert g.bound == pytest.approx(norm / 3, rel=1e-3)
    assert g.edge == pytest.approx(norm * (2 - LR * 2) / (LR * 4), rel=1e-2)
    assert (g.local, g.local_low, g.local_high) == pytest.approx((norm / -slope,) * 3, rel=1e-4)
    assert g.bound < g.local
    assert g.noise == pytest.approx(0, abs=1e-20) and g.gsnr > 1e10
    assert g.converged


def root_of(g: Tensor, h: Tensor) -> float:
    """On a quadratic q(rho) is linear: its root is -mean <g_k, g_j> / mean <g_k, H u_j> over k != j."""
    u = F.normalize(g, dim=1)
    apart = ~torch.eye(len(g), dtype=torch.bool)
    return -float((g @ g.T)[apart].mean() / (g @ h @ u.T)[apart].mean())


def test_local_radius_with_noise_in_closed_form():
    h, w, noise = symmetric(2.0, -3.0, 1.0, -0.5), normal(4), 0.5 * normal(40, 4, seed=3)
    batches = disjoint_batches(40, SIZE)
    expected = root_of(torch.stack([h @ w + noise[b].mean(0) for b in batches]), h)
    loss, params = quadratic(h, noise), {"w": w}
    found = local_radius(loss, params, batches, batch_gradients(loss, params, batches), precision=1e-6)
    assert 0 < expected < 16
    assert found.value == pytest.approx(expected, rel=1e-5)
    assert found.low < found.value < found.high


def test_bound_gsnr_and_noise_belong_together():
    h, w = symmetric(2.0, 1.0, 0.5), normal(3, seed=2)
    noise = normal(64, 3, seed=5)
    loss, params = quadratic(h, noise), {"w": w}
    g = geometry(loss, params, disjoint_batches(64, SIZE), LR)
    gradients = batch_gradients(loss, params, disjoint_batches(64, SIZE))
    signal, tr = signal_and_noise(gradients, SIZE)
    assert (g.gsnr, g.noise) == pytest.approx((signal / tr, tr))
    assert g.bound == pytest.approx(math.sqrt(g.gsnr * g.noise) / g.smoothness)
    assert g.batch_norm**2 == pytest.approx(float(gradients.square().sum(1).mean()))
    assert g.local is g.local_high is None  # on a convex loss nothing but noise turns the step round


@given(st.floats(0.01, 100.0), st.integers(0, 20))
@settings(max_examples=6, deadline=None)
def test_the_scale_of_the_loss_changes_curvature_and_nothing_else(scale, seed):
    h, w, noise = symmetric(2.0, -3.0, 1.0, -0.5), normal(4, seed=seed), 0.3 * normal(24, 4, seed=seed + 1)
    batches = disjoint_batches(24, SIZE)
    a = geometry(quadratic(h, noise), {"w": w}, batches, LR)
    b = geometry(quadratic(scale * h, scale * noise), {"w": w}, batches, LR / scale)
    for name in ("gsnr", "bound", "edge", "local", "local_low", "local_high"):
        first, second = (math.inf if x is None else x for x in (asdict(a)[name], asdict(b)[name]))
        assert second == pytest.approx(first, rel=1e-6), name
    for name in ("smoothness", "curvature", "gradient_norm", "batch_norm"):
        assert asdict(b)[name] == pytest.approx(scale * asdict(a)[name], rel=1e-6), name
    assert b.noise == pytest.approx(scale**2 * a.noise)


def test_radii_are_lengths_in_the_space_of_weights():
    h, w, noise = symmetric(2.0, -3.0, 1.0), normal(3, seed=4), 0.3 * normal(24, 3)
    batches = disjoint_batches(24, SIZE)
    a = geometry(quadratic(h, noise), {"w": w}, batches, LR)
    b = geometry(quadratic(h / 4, noise / 2), {"w": 2 * w}, batches, 4 * LR)  # the same loss of w / 2
    assert (b.bound, b.edge, b.local) == pytest.approx((2 * a.bound, 2 * a.edge, 2 * a.local), rel=1e-4)
    turn = symmetric(1.0, -1.0, 1.0, seed=8)  # orthogonal
    c = geometry(quadratic(turn @ h @ turn, noise @ turn), {"w": turn @ w}, batches, LR)
    assert (c.bound, c.local, c.gsnr) == pytest.approx((a.bound, a.local, a.gsnr), rel=1e-3)


def test_intervals_cover_the_true_local_radius_and_are_as_wide_as_it_scatters():
    h, w = symmetric(2.0, -3.0, 1.0, -0.5), normal(4)
    sigma, k, runs = 1.0, 12, 14
    gradients = h @ w + sigma / math.sqrt(SIZE) * normal(1000, k, 4, seed=1)
    roots = [root_of(g, h) for g in gradients]
    batches = disjoint_batches(k * SIZE, SIZE)
    found = []
    for run in range(runs):
        loss, params = quadratic(h, sigma * normal(k * SIZE, 4, seed=10 + run)), {"w": w}
        found.append(local_radius(loss, params, batches, batch_gradients(loss, params, batches), limit=4 * math.pi))
    assert sum(r.low <= np.mean(roots) <= r.high for r in found) >= 12
    width = 2 * 2.2 * np.std(roots)  # Student's t of 11 degrees of freedom
    assert np.mean([r.high - r.low for r in found]) == pytest.approx(width, rel=0.2)


def test_noise_alone_shows_no_descent():
    """Judged by a gradient that contains it, a batch's own step would always descend."""
    batches = disjoint_batches(24, SIZE)
    found, naive = [], []
    for seed in range(30):
        noise = normal(24, 20, seed=seed)
        loss, params = quadratic(torch.eye(20, dtype=torch.float64), noise), {"w": torch.zeros(20).double()}
        gradients = batch_gradients(loss, params, batches)
        found.append(local_radius(loss, params, batches, gradients))
        naive.append(float(gradients.mean(0).square().sum()))  # q(0), batches judging themselves
    assert min(naive) > 0
    assert 0.3 < np.mean([r.value == 0 for r in found]) < 0.85
    assert np.mean([r.low == 0 for r in found]) > 0.9


# --- Degenerate cases


def test_without_any_gradient_there_is_no_radius():
    g = geometry(quadratic(torch.eye(2).double(), torch.zeros(12, 2).double()), {"w": torch.zeros(2).double()},
                 disjoint_batches(12, SIZE), LR)  # fmt: skip
    assert (g.gradient_norm, g.noise, g.gsnr, g.bound, g.edge, g.local) == (0, 0, 0, 0, 0, 0)


def test_a_negative_gsnr_leaves_no_guarantee():
    noise = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]], dtype=torch.float64)
    g = geometry(quadratic(torch.eye(2).double(), noise), {"w": torch.zeros(2).double()}, [[0], [1], [2], [3]], LR)
    assert g.gsnr < 0
    assert (g.gradient_norm, g.bound, g.local) == (0, 0, 0)


def test_a_flat_loss_is_safe_at_any_radius():
    tilt = torch.ones(12, 2).double()
    g = geometry(quadratic(torch.zeros(2, 2).double(), tilt), {"w": torch.ones(2).double()},
                 disjoint_batches(12, SIZE), LR)  # fmt: skip
    assert (g.smoothness, g.curvature, g.bound, g.edge, g.local) == (0, 0, math.inf, None, None)

    def linear(params: Params, indices) -> Tensor:
        return (params["w"] * tilt[torch.as_tensor(indices)]).sum(1).mean()

    assert not hessian_vector(linear, {"w": torch.ones(2).double()}, [0, 1], {"w": torch.ones(2)})["w"].any()


def test_a_loss_that_is_not_finite_is_refused_here_and_breaks_descent_further_on():
    batches = disjoint_batches(12, SIZE)

    def cliff(params: Params, indices) -> Tensor:
        return -torch.log(1 - params["w"]).sum()

    with pytest.raises(ValueError, match="not finite"):
        geometry(cliff, {"w": torch.tensor([1.5])}, batches, LR)
    params = {"w": torch.tensor([0.25], dtype=torch.float64)}
    found = local_radius(cliff, params, batches, batch_gradients(cliff, params, batches), precision=1e-4)
    assert found.value == pytest.approx(0.75, rel=1e-3)


def test_unfit_batches_and_step_sizes_are_refused():
    loss, params = quadratic(torch.eye(2).double(), torch.ones(12, 2).double()), {"w": torch.ones(2).double()}
    with pytest.raises(ValueError, match="three"):
        geometry(loss, params, [[0], [1]], LR)
    with pytest.raises(ValueError, match="one size"):
        geometry(loss, params, [[0], [1], [2, 3]], LR)
    with pytest.raises(ValueError, match="independent"):
        geometry(loss, params, [[0], [1], [0]], LR)
    with pytest.raises(ValueError, match="positive"):
        edge_radius(1.0, 1.0, 0.0)


# --- docs/theory.md, section 3: the full batch


@given(st.integers(0, 500), st.floats(0.01, 0.99))
@settings(deadline=None)
def test_below_the_bound_every_unit_vector_leaves_a_descent_direction(seed, share):
    h = symmetric(2.0, -3.0, 1.0, seed=seed)
    gradient, u = normal(3, seed=seed), F.normalize(normal(3, seed=seed + 1), dim=0)
    rho = share * float(gradient.norm()) / 3
    assert gradient @ (gradient + rho * h @ u) >= (1 - share) * gradient.square().sum() - 1e-12


def test_the_bound_is_reached():
    """When the gradient points along the eigenvalue -beta, the update vanishes at ||g|| / beta exactly."""
    noise, w = torch.zeros(12, 2).double(), torch.tensor([0.7, 0.0]).double()
    h = torch.diag(torch.tensor([-3.0, 1.0])).double()
    g = geometry(quadratic(h, noise), {"w": w}, disjoint_batches(12, SIZE), LR, precision=1e-6)
    assert g.local == pytest.approx(g.bound, rel=1e-4) == pytest.approx(0.7, rel=1e-4)


@pytest.mark.parametrize("rho", [0.1, 1.0, 10.0, 100.0])
def test_on_a_convex_loss_the_full_batch_step_always_descends(rho):
    loss, params = classifier()
    of, w = flat_loss(loss, params, range(48))
    g = torch.func.grad(of)(w)
    assert g @ torch.func.grad(of)(w + rho * g / g.norm()) >= g @ g


def test_the_bound_of_a_logistic_head_is_below_its_local_radius():
    loss, params = classifier()
    limit = 4.0
    g = geometry(loss, params, disjoint_batches(48, SIZE), LR, limit=limit)
    assert g.smoothness == pytest.approx(float(torch.linalg.eigvalsh(full_hessian(loss, params, range(48)))[-1]), 1e-2)
    assert 0 < g.bound < (g.local or limit)


# --- Section 4: minibatches


@pytest.mark.parametrize(("ratio", "size"), [(0.01, 4), (0.02, 32), (0.1, 32)])
def test_the_ascent_direction_keeps_a_share_of_the_signal(ratio, size):
    d, runs = 400, 4000
    mean = math.sqrt(ratio / d) * torch.ones(d).double()
    batch = mean + normal(runs, d) / math.sqrt(d * size)  # tr Cov of a sample is 1
    share = size * ratio / (1 + size * ratio)
    assert mean @ mean / batch.square().sum(1).mean() == pytest.approx(share, rel=0.02)
    assert F.cosine_similarity(batch, mean[None]).square().mean() == pytest.approx(share, rel=0.05, abs=2 / d)


@pytest.mark.parametrize("rho", [0.05, 0.2, 0.5, 1.0, 2.0])
def test_with_one_batch_in_both_passes_the_mean_smoothness_of_batches_counts(rho):
    """q(rho) >= ||g||^2 - rho ||g|| mean beta_B, beta_B being batch B's smoothness on its own segment."""
    loss, params = classifier(hidden=4)
    batches = disjoint_batches(48, SIZE)
    functions = [flat_loss(loss, params, b) for b in batches]
    w = functions[0][1]
    gradients = torch.stack([torch.func.grad(of)(w) for of, _ in functions])
    g = gradients.mean(0)
    products, betas = [], []
    for (of, _), own in zip(functions, gradients, strict=True):
        u = own / own.norm()
        products.append(g @ torch.func.grad(of)(w + rho * u))
        on_the_way = [
            torch.linalg.matrix_norm(torch.func.hessian(of)(w + t * rho * u), 2) for t in torch.linspace(0, 1, 9)
        ]
        betas.append(max(on_the_way))
    whole = torch.linalg.matrix_norm(full_hessian(loss, params, [i for b in batches for i in b]), 2)
    bound = g @ g - rho * g.norm() * torch.stack(betas).mean()
    assert bound <= torch.stack(products).mean()
    assert max(betas) > torch.stack(betas).mean() >= whole


@pytest.mark.parametrize("ratio", [0.002, 0.02, 0.2])
def test_noise_dilutes_curvature_along_the_gradient(ratio):
    """Where all samples share the Hessian -kappa I, the local radius is near sqrt(tr C (R + 1/B)) / kappa."""
    d, size, kappa, k = 300, 8, 2.0, 1000
    g = math.sqrt(ratio / d) * torch.ones(d).double()
    noise = normal(k, d) / math.sqrt(d * size)  # tr C = 1
    batch = g + noise - noise.mean(0)  # so that the signal is exact
    u = batch / batch.norm(dim=1, keepdim=True)
    radius = float(g @ g / (kappa * g @ u.mean(0)))
    assert radius == pytest.approx(math.sqrt(ratio + 1 / size) / kappa, rel=0.02)


def stable_share(c: float, k: float) -> float:
    """s* of Proposition 3."""
    return (math.sqrt(1 + 4 * k * (c + 1)) - (2 * k * c + 1)) / (2 * k)


@given(st.floats(1.0, 5.0), st.floats(0.001, 0.9))
def test_the_share_left_by_noise_and_step_size(c, k):
    s = stable_share(c, k)
    assert 1 - s == pytest.approx(k * (c + s) ** 2)
    assert (s > 0) == (k * c**2 < 1) or abs(k * c**2 - 1) < 1e-9
    assert stable_share(c + 0.1, k) < s and stable_share(c, k * 1.1) < s


def test_the_share_tends_to_one_for_small_steps():
    assert stable_share(3.0, 1e-6) == pytest.approx(1, abs=1e-4)


@given(st.integers(0, 300), st.floats(0.05, 1.0), st.floats(0.1, 1.0))
@settings(deadline=None)
def test_below_the_radius_with_noise_the_expected_loss_falls(seed, spread, share):
    """All batches there are, exactly: the mean of L(w - eta d_B) is below L(w)."""
    h, beta, lr = symmetric(2.0, -3.0, 1.0, seed=seed), 3.0, 0.05
    w, errors = normal(3, seed=seed), spread * normal(8, 3, seed=seed + 1)
    errors -= errors.mean(0)
    g = h @ w
    batch = g + errors
    c = math.sqrt(float(batch.square().sum(1).mean() / g.square().sum()))
    s = stable_share(c, lr * beta / 2)
    if s <= 0:
        return
    rho = share * 0.999 * s * float(g.norm()) / beta
    steps = batch + rho * (batch / batch.norm(dim=1, keepdim=True)) @ h
    moved = w - lr * steps
    assert (0.5 * ((moved @ h) * moved).sum(1)).mean() < 0.5 * w @ h @ w


# --- Section 5: the edge of stability


@given(st.floats(0.1, 10), st.floats(0.01, 1.9), st.floats(0.1, 5))
def test_the_edge_and_the_curvature_at_the_edge_are_inverse(norm, sharpness, lr):
    curvature = sharpness / lr
    rho = edge_radius(norm, curvature, lr)
    assert rho > 0
    edge = norm / (2 * rho) * (math.sqrt(1 + 8 * rho / (lr * norm)) - 1)
    assert edge == pytest.approx(curvature, rel=1e-6)


def test_no_edge_without_curvature_or_beyond_that_of_gradient_descent():
    assert edge_radius(1.0, 0.0, LR) is edge_radius(1.0, -1.0, LR) is edge_radius(1.0, 2 / LR, LR) is None


@pytest.mark.parametrize(("factor", "contracts"), [(0.98, True), (1.02, False)])
def test_two_percent_around_the_edge_decide(factor, contracts):
    h = symmetric(5.0, 1.0, -0.5)
    top = torch.linalg.eigh(h).eigenvectors[:, -1]
    w = normal(3, seed=3)
    g = h @ w
    rho = factor * edge_radius(float(g.norm()), 5.0, LR)
    moved = w - LR * h @ (w + rho * g / g.norm())
    assert (abs(top @ moved) < abs(top @ w)) == contracts


def test_beyond_the_edge_one_dimension_oscillates():
    w, curvature, rho = torch.tensor([0.01]).double(), 5.0, 0.3
    for _ in range(500):
        g = curvature * w
        w = w - LR * curvature * (w + rho * g / g.norm())
    size = LR * rho * curvature**2 / (2 - LR * curvature)
    assert float((curvature * w).norm()) == pytest.approx(size)
    assert edge_radius(size, curvature, LR) == pytest.approx(rho)


# --- Section 6: saddles


@given(st.integers(0, 500), st.floats(0.05, 0.99))
@settings(deadline=None)
def test_close_to_a_saddle_the_flow_of_sam_shrinks_the_gradient(seed, share):
    h = symmetric(2.0, -3.0, 0.5, seed=seed)
    u = F.normalize(normal(3, seed=seed), dim=0)
    rho = 1.0
    g = share * rho * 0.5 * u  # ||g|| < rho * smallest |eigenvalue|
    assert g @ (-h @ (g + rho * h @ u)) < 0  # half the derivative of ||g||^2


def test_gradient_descent_leaves_a_saddle_that_holds_sam():
    h = torch.diag(torch.tensor([1.0, -1.0])).double()
    ends = []
    for rho in (0.0, 0.5):
        w = torch.tensor([0.1, 0.2]).double()
        for _ in range(8000):
            g = h @ w
            w = w - 2e-3 * h @ (w + rho * g / g.norm())
            if w.norm() > 10:
                break
        ends.append(float(w.norm()))
    assert ends[0] > 10 and ends[1] < 4e-3


def test_constant_logits_at_the_prior_are_a_saddle_of_two_linear_layers():
    n, d, hidden = 40, 3, 2
    labels = (torch.arange(n) % 4 == 0).double()
    x = normal(n, d) + labels[:, None]
    prior = labels.mean()

    def of(p: Tensor) -> Tensor:
        first, a, b = p[: hidden * d].view(hidden, d), p[hidden * d : -1], p[-1]
        return F.binary_cross_entropy_with_logits(x @ first.T @ a + b, labels)

    at = torch.zeros(hidden * d + hidden + 1).double()
    at[-1] = torch.logit(prior)
    assert torch.func.grad(of)(at).abs().max() < 1e-12
    gap = prior * (1 - prior) * (x[labels == 1].mean(0) - x[labels == 0].mean(0)).norm()
    expected = sorted([float(gap)] * hidden + [-float(gap)] * hidden + [float(prior * (1 - prior))] + [0.0] * 4)
    assert torch.linalg.eigvalsh(torch.func.hessian(of)(at)).numpy() == pytest.approx(np.array(expected), abs=1e-10)


def test_signal_at_constant_logits_is_the_distance_of_the_classes():
    n = 400
    labels = (torch.arange(n) % 4 == 0).double()
    x = normal(n, 3) + 0.3 * labels[:, None]
    prior = labels.mean()
    per_sample = (prior - labels)[:, None] * x
    w = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(F.binary_cross_entropy_with_logits(x @ w + torch.logit(prior), labels), w)
    gap = (x[labels == 1].mean(0) - x[labels == 0].mean(0)).norm()
    signal = prior**2 * (1 - prior) ** 2 * gap**2
    assert g.square().sum() == pytest.approx(float(signal)) == pytest.approx(float(per_sample.mean(0).square().sum()))
    total = (1 - prior) ** 2 * prior * x[labels == 1].square().sum(1).mean()
    total += prior**2 * (1 - prior) * x[labels == 0].square().sum(1).mean()
    ratio = signal / (total - signal)
    assert per_sample.mean(0).square().sum() / per_sample.T.cov(correction=0).trace() == pytest.approx(float(ratio))
