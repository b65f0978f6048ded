"""A trained network as samples: an image depends on weights, sampler and seed, and on nothing else."""

import contextlib
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_run import CPU, checkpoint, digits, go, small

from cmray.core.errors import CheckpointError, CmrayError
from cmray.core.grids import karras_sigmas
from cmray.engine.curve import Curve
from cmray.engine.measure import block_statistics, seed_blocks
from cmray.engine.model import Model, load_model, make_sampler, sample_seeds
from cmray.engine.session import PlainSession
from cmray.engine.state import TrainState
from cmray.metrics.extractors import extractors
from cmray.metrics.frechet import frechet_distance
from cmray.metrics.reference import reference_statistics
from cmray.metrics.statistics import merged
from cmray.samplers import samplers


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Checkpoints: a consistency model, a denoiser, and a class-conditional one whose labels matter."""
    folder = tmp_path_factory.mktemp("models")
    runs = {
        "ct": small({"train.ema": [0.9, 0.5], "train.steps": 20}),
        "edm": small({"objective": {"name": "edm"}}),
        "labels": small({"net.class_conditional": True, "train.steps": 20}),
        "unet": small({"net": {"name": "unet", "channels": 8, "attention_levels": [1]}, "train.steps": 4}),
    }
    for name, run in runs.items():
        go(run, folder / name)
    return {name: checkpoint(folder / name) for name in runs}


def model(folders, name: str) -> Model:
    return load_model(folders[name], CPU)


@pytest.mark.parametrize("name", ["ct", "edm", "labels", "unet"])
@pytest.mark.parametrize("nfe", [1, 3])
def test_an_image_has_the_same_bits_whatever_else_is_asked_for(folders, name, nfe):
    m = model(folders, name)
    sampler = m.sampler(nfe)
    seeds = list(range(150))
    whole = m.images(sampler, seeds)
    assert (whole.dtype, whole.shape) == (torch.float32, (150, 1, 8, 8))
    shuffled = seeds.copy()
    random.Random(0).shuffle(shuffled)
    for asked in ([0], [149], seeds[3:70], seeds[::-1], shuffled, [5, 5, 5]):
        assert torch.equal(m.images(sampler, asked), whole[asked]), f"{len(asked)} seeds from {asked[0]}"
    assert not torch.equal(whole[0], whole[1])


def test_labels_may_be_given_or_are_drawn_by_seed(folders):
    m = model(folders, "labels")
    sampler = m.sampler(1)
    seeds = list(range(70))
    drawn = m.images(sampler, seeds)
    assert torch.equal(drawn[[7]], m.images(sampler, [7]))
    alike = [m.images(sampler, seeds, labels=torch.full((70,), c)) for c in (1, 2, 3)]
    assert not torch.equal(alike[0], alike[1])
    mixed = m.images(sampler, seeds, labels=torch.arange(70) % 3 + 1)  # 3 does not divide a block of 64
    for i in range(3):
        assert torch.equal(mixed[i::3], alike[i][i::3])


def test_the_weights_are_the_first_average_unless_asked_otherwise(folders):
    path = folders["ct"]
    for asked, shown, file in (
        (None, "ema 0.9", "ema-0.9"),
        ("ema 0.5", "ema 0.5", "ema-0.5"),
        ("student", "student", "student"),
    ):
        m = load_model(path, CPU, asked)
        assert m.weights == shown
        stored = load_file(path / f"{file}.safetensors")
        assert all(torch.equal(p, stored[n]) for n, p in m.net.named_parameters())
        assert not any(p.requires_grad for p in m.net.parameters())
        assert not m.net.training
    with pytest.raises(CheckpointError, match=r"has no weights 'ema 0\.7'; it has: student, ema 0\.9, ema 0\.5"):
        load_model(path, CPU, "ema 0.7")


def test_a_damaged_or_foreign_checkpoint_is_refused(folders, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_model(tmp_path / "none", CPU)
    copy = shutil.copytree(folders["ct"], tmp_path / "copy")
    data = bytearray((copy / "ema-0.9.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "ema-0.9.safetensors").write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"ema-0\.9\.safetensors changed after it was written"):
        load_model(copy, CPU)
    load_model(copy, CPU, "student")
    meta = (folders["ct"] / "meta.json").read_text()
    assert '"width": 16' in meta
    (copy / "meta.json").write_text(meta.replace('"width": 16', '"width": 24'))
    with pytest.raises(CheckpointError, match="does not hold the network its manifest names") as error:
        load_model(copy, CPU, "student")
    assert "\n" not in str(error.value)


CT, EDM = small(), small({"objective": {"name": "edm"}})


@pytest.mark.parametrize(
    ("run", "nfe", "times", "words"),
    [
        (EDM, 1, [80.0], "times are for consistency models"),
        (EDM, 2, None, "nfe 2 is even"),
        (CT, 2, [80.0], "nfe is 2, but 1 times are given"),
        (CT, 1, [80.0, 1.0], "nfe is 1, but 2 times are given"),
        (CT, 2, [1.0, 80.0], "times must descend"),
        (CT, 2, [1.0, 1.0], "times must descend"),
        (CT, 2, [81.0, 1.0], "at most sigma_max 80.0"),
        (CT, 2, [80.0, 0.002], "above sigma_min 0.002"),
        (CT, 2, [80.0, float("nan")], "above sigma_min"),
        (CT, 0, None, "nfe is 0; a sample takes at least 1"),
        (CT, 0, [], "nfe is 0"),
        (EDM, -1, None, "nfe is -1"),
        (CT, -3, None, "nfe is -3"),
    ],
)
def test_a_sampler_that_cannot_be_is_told_in_one_line(run, nfe, times, words):
    with pytest.raises(CmrayError, match=r".+") as error:
        make_sampler(run, nfe, times)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("nfe", [1, 2, 3, 5, 35])
def test_the_budget_is_what_the_sampler_takes(nfe):
    for run in (CT, EDM):
        if run is EDM and nfe % 2 == 0:
            continue
        sampler = make_sampler(run, nfe)
        assert sampler.nfe == nfe
        assert sampler.times[0] == 80.0
        calls = []

        def counted(x, sigma, label, calls=calls):
            calls.append(float(sigma[0]))
            return x / 2

        sample_seeds(counted, sampler, [0, 1], (1, 2, 2), 0, CPU)
        assert len(calls) == nfe
        assert min(calls) > 0.0019


def test_by_default_a_consistency_model_is_sampled_on_its_own_grid_above_sigma_min():
    assert make_sampler(CT, 4).sigmas == pytest.approx(tuple(karras_sigmas(5, 0.002, 80.0, 7.0)[1:]))
    assert make_sampler(EDM, 9).sigmas == pytest.approx(tuple(karras_sigmas(5, 0.002, 80.0, 7.0)))
    assert make_sampler(CT, 2, [80.0, 0.8]).times == [80.0, 0.8]


@pytest.mark.parametrize(
    ("run", "nfe", "name", "words"),
    [
        (EDM, 3, "edm-huen", "unknown sampler 'edm-huen'; did you mean 'edm-heun'?"),
        (EDM, 2, "edm-heun", "sampler edm-heun cannot take nfe 2: it takes 1, 3, 5 and so on; nearest: 1 or 3"),
        (EDM, 5, "dpm-solver-3", "sampler dpm-solver-3 cannot take nfe 5: it takes 1, 4, 7 and so on; nearest: 4 or 7"),
        (EDM, 1, "predictor-corrector", "it takes 2, 4, 6 and so on; nearest: 2"),
        (
            EDM,
            4,
            {"name": "predictor-corrector", "corrector_steps": 2},
            "corrector_steps=2 cannot take nfe 4: it takes 3",
        ),
        (EDM, 1, "one-step", "sampler one-step is for consistency models; this model is a denoiser, use: ancestral, "),
        (EDM, 2, "multistep", "sampler multistep is for consistency models"),
        (CT, 2, "euler", "euler is for denoisers; this model is a consistency model, use: multistep, one-step"),
        (CT, 2, "one-step", "one-step takes 1 network evaluation, not 2"),
        (CT, 2, {"name": "multistep", "sigma_min": 0.1}, "sigma_min follows from the model"),
        (EDM, 3, {"name": "edm-heun", "sigmas": [1.0]}, "sigmas follows from the model"),
        (EDM, 3, {"name": "edm-heun", "S_churm": 1}, "sampler edm-heun: S_churm unknown key; did you mean 'S_churn'?"),
        (EDM, 3, {"name": "edm-heun", "S_churn": "much"}, "sampler edm-heun: S_churn"),
        (EDM, 3, {"name": "edm-heun", "S_noise": 2}, "sampler edm-heun: S_min, S_max and S_noise say"),
        (EDM, 3, {"S_churn": 1}, "a sampler is a name, or a mapping with 'name'"),
        (EDM, 0, "euler", "nfe is 0"),
    ],
)
def test_a_sampler_asked_for_that_cannot_be_is_told_in_one_line(run, nfe, name, words):
    with pytest.raises(CmrayError, match=r".+") as error:
        make_sampler(run, nfe, name=name)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", samplers.names())
def test_every_sampler_is_there_for_a_model_by_its_name_and_takes_the_budget(folders, name):
    cls = samplers.get(name)
    m = model(folders, "ct" if cls.of_consistency else "edm")
    made = []
    for nfe in range(1, 9):
        with contextlib.suppress(CmrayError):  # a budget that it cannot take
            made.append((nfe, m.sampler(nfe, name=name)))
    assert len(made) == 1 if name == "one-step" else len(made) >= 3
    for nfe, sampler in made:
        assert (sampler.name, sampler.nfe, sampler.times[0]) == (name, nfe, 80.0)
        if len(sampler.sigmas) > 1 and not cls.of_consistency:
            assert sampler.sigmas == pytest.approx(tuple(karras_sigmas(len(sampler.sigmas), 0.002, 80.0, 7.0)))
    sampler = made[-1][1]
    whole = m.images(sampler, range(70))
    assert whole.isfinite().all()
    assert torch.equal(whole[[66]], m.images(sampler, [66]))


def test_a_sampler_by_its_usual_name_is_the_default_one():
    assert make_sampler(EDM, 5, name="edm-heun") == make_sampler(EDM, 5)
    assert make_sampler(CT, 3, name="multistep") == make_sampler(CT, 3)
    assert make_sampler(CT, 1, name="one-step") == make_sampler(CT, 1)
    assert make_sampler(CT, 2, [80.0, 0.8], "multistep") == make_sampler(CT, 2, [80.0, 0.8])
    assert make_sampler(EDM, 5, name={"name": "edm-heun", "S_churn": 40}).S_churn == 40


def test_seed_blocks_cover_all_seeds_once_in_order():
    for first, count, block in ((0, 10, 3), (5, 9, 3), (2**40, 1, 256), (3, 256, 256)):
        blocks = seed_blocks(first, count, block)
        assert [s for b in blocks for s in b] == list(range(first, first + count))
        assert all(len(b) == block for b in blocks[:-1])
        assert len(blocks) == -(-count // block)


def test_blocks_measured_anywhere_and_merged_in_order_give_the_same_bits(folders):
    m = model(folders, "ct")
    extractor = extractors.parse("digits").build(CPU)
    sampler = m.sampler(2)

    def generate(seeds):
        return m.images(sampler, seeds)

    blocks = seed_blocks(1000, 210, 32)
    in_turn = merged([block_statistics(generate, extractor, b) for b in blocks])
    other_order = {b: block_statistics(generate, extractor, b) for b in reversed(blocks)}
    gathered = merged([other_order[b] for b in blocks])
    assert in_turn.sha256() == gathered.sha256()
    assert in_turn.n == 210
    all_at_once = block_statistics(generate, extractor, range(1000, 1210))
    np.testing.assert_allclose(in_turn.mean, all_at_once.mean, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(in_turn.covariance, all_at_once.covariance, rtol=1e-5, atol=1e-7)


def test_merging_leaves_the_blocks_as_they_are():
    extractor = extractors.parse("digits").build(CPU)
    images = torch.from_numpy(digits().images[:64]).float() / 127.5 - 1
    blocks = [block_statistics(lambda s: images[list(s)], extractor, b) for b in seed_blocks(0, 64, 16)]
    before = [b.sha256() for b in blocks]
    assert merged(blocks).sha256() == merged(blocks).sha256()
    assert [b.sha256() for b in blocks] == before
    whole = reference_statistics(extractor, digits().images[:64], block=16)
    assert merged(blocks).sha256() == whole.sha256(), "to_pixels gives the dataset's own pixels back"


def test_the_curve_is_the_frechet_distance_of_the_first_average(folders):
    run = small({"train.ema": [0.9, 0.5], "train.steps": 20}, curve={"every": 1, "num_samples": 300, "nfe": [1, 2]})
    state = TrainState(run, (1, 8, 8), 10, None, PlainSession(CPU))
    m = model(folders, "ct")
    # weights far from the student's and from the other average, so that measuring those would be seen
    weights = torch.cat([p.reshape(-1) for p in m.net.parameters()])
    weights += 0.2 * torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    state.ema.averages[0.9].copy_(weights)
    torch.nn.utils.vector_to_parameters(weights, m.net.parameters())
    curve = Curve(state, digits())
    curve.take(state)
    found = curve.measure()
    assert found == curve.measure(), "the same seeds each time"
    state.ema.averages[0.9].zero_()
    assert found == curve.measure(), "of the weights that were taken, whatever becomes of the run's"
    extractor = extractors.parse("digits").build(CPU)
    reference = reference_statistics(extractor, digits().images)
    for nfe in (1, 2):
        seeds = range(1 << 40, (1 << 40) + 300)
        pixels = ((m.images(m.sampler(nfe), seeds) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
        expected = frechet_distance(reference_statistics(extractor, pixels), reference)
        assert found[f"fd/digits@{nfe}"] == pytest.approx(expected, rel=1e-3)
    assert state.student.params.grad.abs().sum() == 0
