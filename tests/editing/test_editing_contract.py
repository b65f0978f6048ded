"""Every registered editing task is what Algorithm 4 asks for, on data whose consistency function is known."""

import pytest
import torch
from gaussian_truth import Calls, Gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from own_names import own

from cmray.core.rng import SampleNoise
from cmray.editing import Levels, edited, editing_tasks
from cmray.editing.base import Row
from cmray.samplers import samplers

DATA = Gaussian()
SIGMA_MIN = 0.002
SHAPE = (3, 8, 8)
LEVELS = Levels(SIGMA_MIN, 80.0)
CPU = torch.device("cpu")
#: options that a task cannot do without, and others that change what is known
OPTIONS = {
    "inpaint": [{"box": (2, 1, 4, 5)}, {"word": "V"}],
    "superres": [{"factor": 2}, {"factor": 4}, {"factor": 8}],
    "stroke": [{}, {"box": (0, 0, 3, 8)}],
    "denoise": [{}, {"level": 2.0, "noisy": True}],
    "interpolate": [{"frames": 2}],
}
SPECS = [(name, options) for name in editing_tasks.names() for options in OPTIONS.get(name, [{}])]
by_task = pytest.mark.parametrize(("name", "options"), SPECS, ids=lambda value: str(value))


def task_of(name, options):
    return editing_tasks.parse({"name": name, **options})


def images(count=2, seed=0):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def multistep(times):
    return samplers.parse({"name": "multistep", "sigmas": tuple(reversed(times)), "sigma_min": SIGMA_MIN})


def run(task, pictures, denoise=None, steps=5, seed=0):
    """Edits with the task's own schedule; for each level list one batch."""
    known = task.prepare(pictures)
    rows = task.rows(len(pictures), 1, seed)
    known = known.rows([row.image for row in rows])
    out = []
    for times in task.schedules(LEVELS, SHAPE[-1], steps, True, len(pictures)):
        noise = task.noise(rows, SHAPE, CPU)
        out.append(edited(task, denoise or DATA.consistency(SIGMA_MIN), multistep(times), known, noise))
    assert out, "nothing was edited, and tests that look at each result would see none"
    return known, out


def test_the_six_tasks_of_the_paper_are_there():
    assert own(editing_tasks) == ["colorize", "denoise", "inpaint", "interpolate", "stroke", "superres"]


@by_task
def test_the_transform_is_orthogonal_and_has_its_inverse(name, options):
    task, x, y = task_of(name, options), images(seed=1), images(seed=2)
    ax, ay = task.transform(x), task.transform(y)
    assert torch.allclose(ax.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-5)
    assert torch.allclose((ax * ay).flatten(1).sum(1), (x * y).flatten(1).sum(1), rtol=1e-4, atol=1e-4)
    assert torch.allclose(task.inverse(ax), x, atol=1e-6)
    assert torch.allclose(task.transform(3 * x - y), 3 * ax - ay, atol=1e-5)


@by_task
def test_the_projection_is_idempotent_and_the_nearest_point_with_the_known_part(name, options):
    task = task_of(name, options)
    known = task.prepare(images())
    other = images(len(known.image), seed=3)
    there = task.project(other, known)
    assert torch.allclose(task.project(there, known), there, atol=1e-6)
    assert task.known_error(there, known).max() < 1e-6
    # what was moved is at right angles to every way that is left free
    free = task.project(images(len(known.image), seed=4), known) - there
    moved = (other - there) * free
    assert moved.flatten(1).sum(1).abs().max() < 1e-4


@by_task
def test_the_known_part_is_kept_and_values_stay_in_range(name, options):
    task = task_of(name, options)
    known, outputs = run(task, images())
    for out in outputs:
        assert out.abs().max() <= 1
        assert out.isfinite().all()
        assert task.known_error(out, known).max() <= 1e-5


@by_task
def test_what_a_network_gone_wild_says_does_not_reach_the_known_part(name, options):
    """Answers far out of range are clipped before they are projected, and what is known survives all the same."""
    task = task_of(name, options)
    known, outputs = run(task, images(), denoise=lambda x, sigma, label: 50 * torch.sin(1e3 * x))
    for out in outputs:
        assert out.abs().max() <= 1
        assert task.known_error(out, known).max() <= 1e-5


@by_task
def test_equal_seeds_give_equal_bits_alone_or_with_others(name, options):
    task = task_of(name, options)
    pictures = images()
    _, once = run(task, pictures)
    _, again = run(task, pictures)
    _, others = run(task, pictures, seed=7)
    for a, b, c in zip(once, again, others, strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c) or options.get("noisy")
    if name != "interpolate":  # its two images belong together
        _, alone = run(task, pictures[1:])
        for a, b in zip(once, alone, strict=True):
            assert torch.equal(a[1:], b)


@pytest.mark.parametrize("name", ["inpaint", "stroke"])
def test_outside_of_the_hole_every_bit_stays(name):
    task = task_of(name, {"box": (2, 1, 4, 5)})
    pictures = images()
    _, (out,) = run(task, pictures)
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[1:6, 2:6] = True
    assert torch.equal(out[..., ~hole], pictures[..., ~hole])
    assert not torch.isclose(out[..., hole], pictures[..., hole]).any(-1).all()


def test_colorize_keeps_luma_and_superres_means_as_computed_without_the_operators():
    pictures = images()
    _, (out,) = run(task_of("colorize", {}), pictures)
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert torch.allclose(
        torch.einsum("bchw,c->bhw", out, luma), torch.einsum("bchw,c->bhw", pictures, luma), atol=1e-5
    )
    _, (out,) = run(task_of("superres", {"factor": 4}), pictures)
    small = torch.nn.functional.avg_pool2d
    assert torch.allclose(small(out, 4), small(pictures, 4), atol=1e-5)
    assert (out - pictures).abs().max() > 0.5


def test_any_orthogonal_matrix_with_the_same_first_row_gives_the_same_projection():
    """The paper completes the first vector by a QR decomposition; this project reflects."""
    task, x, y = task_of("superres", {"factor": 2}), images(seed=5), images(seed=6)
    basis = torch.eye(4)
    basis[:, 0] = 0.5
    q = torch.linalg.qr(basis).Q
    a, b = (task.groups(t) @ q for t in (x, y))
    b[..., 0] = a[..., 0]
    assert torch.allclose(task.project(y, task.prepare(x)), task.ungroup(b @ q.T), atol=1e-6)


def test_algorithm_4_is_algorithm_1_where_nothing_is_known():
    """With A = I, everything unknown and y = 0, edits are the sampler's own images."""
    task = task_of("interpolate", {"frames": 2, "between": (5, 9)})
    times = LEVELS.descending(4)
    known = task.prepare(torch.zeros(0, *SHAPE))
    noise = task.noise(task.rows(0, 1, 0), SHAPE, CPU)
    f = DATA.consistency(SIGMA_MIN)
    out = edited(task, f, multistep(times), known, noise)
    plain = multistep(times).sample(lambda *args: f(*args).clamp(-1, 1), SampleNoise([5, 9], SHAPE))
    assert torch.equal(out, plain)


def test_noise_is_added_around_the_known_part_and_the_levels_are_visited_in_turn():
    task = task_of("inpaint", {"box": (0, 0, 8, 4)})
    pictures = images(64)
    calls = Calls(DATA.consistency(SIGMA_MIN))
    times = [5.0, 0.5]
    known = task.prepare(pictures)
    edited(task, calls, multistep(times), known, SampleNoise(range(64), SHAPE))
    (first, sigma, _), (second, _, _) = calls.seen
    assert sigma.unique().tolist() == [5.0]
    assert (first[:, :, :4]).mean().abs() < 0.1  # the hole begins at 0
    assert (first - known.image).std() == pytest.approx(5.0, rel=0.02)
    assert (second - pictures)[:, :, 4:].std() == pytest.approx((0.5**2 - SIGMA_MIN**2) ** 0.5, rel=0.02)


def test_inpainting_gaussian_data_fills_the_hole_with_the_data_s_law():
    """Independent values: what is filled in has mean and spread of the data, whatever is around it."""
    task = task_of("inpaint", {"box": (0, 0, 8, 4)})
    known = task.prepare(torch.full((200, *SHAPE), 0.9))
    f = Gaussian(0.1, 0.2).consistency(SIGMA_MIN)
    out = edited(task, f, multistep(LEVELS.descending(10)), known, SampleNoise(range(200), SHAPE))
    hole = out[:, :, :4]
    assert hole.mean() == pytest.approx(0.1, abs=0.01)
    assert hole.std() == pytest.approx(0.2, rel=0.03)


def test_a_denoiser_s_solver_keeps_what_is_known_too():
    task = task_of("superres", {"factor": 4})
    pictures = images(8)
    sampler = samplers.parse({"name": "edm-heun", "sigmas": tuple(reversed(LEVELS.descending(8)))})
    known = task.prepare(pictures)
    out = edited(task, DATA.denoise, sampler, known, SampleNoise(range(8), SHAPE))
    assert task.known_error(out, known).max() < 1e-5


def test_denoise_takes_away_what_was_added_as_well_as_anything_can():
    """For Gaussian data D is the best there is: its error is std^2 sigma^2 / (std^2 + sigma^2)."""
    data = Gaussian(0.0, 0.2)
    task = task_of("denoise", {"level": [0.1, 0.4]})
    clean = data.draw(400, *SHAPE).clamp(-1, 1)
    known = task.prepare(clean)
    for level in (0.1, 0.4):
        sampler = samplers.parse({"name": "edm-heun", "sigmas": (level,)})
        out = edited(task, data.denoise, sampler, known, SampleNoise(range(400), SHAPE))
        best = (0.2**2 * level**2 / (0.2**2 + level**2)) ** 0.5
        assert (out - clean).std() == pytest.approx(best, rel=0.02)


def test_an_image_that_is_noisy_already_gets_no_more():
    task = task_of("denoise", {"level": 0.3, "noisy": True})
    calls = Calls(DATA.consistency(SIGMA_MIN))
    known = task.prepare(images())
    edited(task, calls, multistep([0.3]), known, task.noise([Row(0, 0, 0), Row(1, 1, 1)], SHAPE, CPU))
    assert torch.equal(calls.seen[0][0], images())


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    n=st.sampled_from([2, 3, 4, 16, 256]),
    spread=st.sampled_from([0.1, 1.0, 30.0]),
    extreme=st.booleans(),
)
def test_the_nearest_values_in_range_keep_their_product(seed, n, spread, extreme):
    from cmray.editing.patches import reflected, shifted_into_range

    draw = torch.Generator().manual_seed(seed)
    u = torch.rand(n, generator=draw) + 0.05
    u = u / u.norm()
    target = torch.rand(5, n, generator=draw) * 2 - 1
    target = target.sign() if extreme else target
    wanted = (target * u).sum(-1)
    g = spread * torch.randn(5, n, generator=draw)
    out = shifted_into_range(g, u, wanted)
    assert out.abs().max() <= 1
    assert torch.allclose((out * u).sum(-1), wanted, atol=1e-5)
    # nearest: no step towards another allowed point comes closer to g
    assert (((g - out).double() * (target - out).double()).sum(-1) <= 1e-3 * spread * n).all()
    assert torch.allclose(reflected(g, u)[..., 0], (g * u).sum(-1), atol=1e-4 * spread)
    assert torch.allclose(reflected(reflected(g, u), u), g, atol=1e-4 * spread)
