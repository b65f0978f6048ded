"""Operations of networks whose numbers are known by hand, and what a plan makes of them."""

import pytest
import torch
import yaml
from small_run import SMALL, small
from torch import nn
from torch.nn import functional as F

from cmray.config.load import merged
from cmray.config.plan import plan_experiment
from cmray.core.distances import distances
from cmray.core.flops import flops_of
from cmray.engine.cost import PEAK, SHARE, cost_of, evaluations, forward_flops, image_flops

SHAPE = (1, 8, 8)


def mlp(width: int, depth: int, values: int) -> int:
    """Two operations a weight: in and out, 32 Fourier features and width^2 to embed, three layers a block."""
    return 2 * (2 * values * width + 32 * width + width**2 + depth * 3 * width**2)


def test_a_product_a_convolution_and_attention_by_hand():
    with torch.device("meta"):
        linear, conv = nn.Linear(7, 5), nn.Conv2d(3, 4, 3, padding=1)
        rows, image, heads = torch.empty(2, 7), torch.empty(1, 3, 10, 8), torch.empty(1, 2, 9, 6)
    assert flops_of(lambda: linear(rows)) == 2 * 2 * 7 * 5
    assert flops_of(lambda: conv(image)) == 2 * 3 * 4 * 9 * 10 * 8
    assert flops_of(lambda: F.scaled_dot_product_attention(heads, heads, heads)) == 2 * 2 * (2 * 9 * 9 * 6)
    assert flops_of(lambda: rows + rows) == 0


@pytest.mark.parametrize(("width", "depth"), [(16, 1), (192, 6)])
def test_the_mlp_by_hand(width, depth):
    assert forward_flops(small({"net.width": width, "net.depth": depth}), SHAPE, 10) == mlp(width, depth, 64)
    labels = small({"net.width": width, "net.depth": depth, "net.class_conditional": True})
    assert forward_flops(labels, SHAPE, 10) == mlp(width, depth, 64), "looking up a class costs nothing"


@pytest.mark.parametrize(
    ("objective", "passes"),
    [
        ({"name": "edm"}, 3),
        ({"name": "ct", "num_sigmas": 9, "mu": 0.9}, 4),  # and the target's
        ({"name": "cd", "num_sigmas": 9, "solver": "euler"}, 5),
        ({"name": "cd", "num_sigmas": 9, "solver": "heun"}, 6),
        ({"name": "pd"}, 5),
        ({"name": "ct-continuous"}, 5),
        ({"name": "cd-continuous"}, 6),
    ],
)
def test_passes_of_a_step(objective, passes):
    values = {"objective": objective, "train.steps": 600, "teacher": {"experiment": "/x/edm.yaml"}}
    assert image_flops(small(values), SHAPE, 1_000) == passes * 1_000


def vgg16(side: int) -> int:
    layers = [(3, 64, 1), (64, 64, 1), (64, 128, 2), (128, 128, 2), (128, 256, 4), (256, 256, 4), (256, 256, 4),
              (256, 512, 8), (512, 512, 8), (512, 512, 8), *[(512, 512, 16)] * 3]  # fmt: skip
    return sum(2 * 9 * ins * outs * (side // shrink) ** 2 for ins, outs, shrink in layers)


def test_lpips_is_vgg16_three_times_and_needs_no_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert vgg16(224) == 2 * 15_346_630_656  # the multiplications that are quoted for it
    lpips = distances.parse("lpips")
    assert lpips.flops((3, 32, 32)) == vgg16(224), "small images are resized"
    assert lpips.flops((3, 256, 256)) == vgg16(256)
    run = small({"objective": {"name": "ct", "num_sigmas": 9, "distance": "lpips"}})
    assert image_flops(run, (3, 32, 32), 1_000) == 4_000 + 3 * vgg16(224)
    assert distances.parse("l2").flops(SHAPE) == 0
    assert distances.parse("features").flops(SHAPE) > 0
    unknown = distances.parse({"name": "features", "extractor": {"name": "trained", "path": str(tmp_path / "no")}})
    assert unknown.flops(SHAPE) == 0


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "edm.yaml").write_text(yaml.safe_dump(merged(SMALL, {"name": "edm", "objective": {"name": "edm"}})))

    def made(**sections):
        cd = {"name": "exp", "objective": {"name": "cd", "num_sigmas": 9}, "teacher": {"experiment": "edm.yaml"}}
        panels = {"panels": {"p": {"grid": {"seed": [0, 1]}}}}
        (tmp_path / "exp.yaml").write_text(yaml.safe_dump(merged(merged(SMALL, cd), {**panels, **sections})))
        return plan_experiment(tmp_path / "exp.yaml", [], tmp_path / "storage")

    return made


FORWARD = mlp(16, 1, 64)
SECOND = PEAK["fp32"] * SHARE


def test_gpu_hours_of_a_plan_by_hand(plan):
    found = plan()
    cost = cost_of(found)
    student, teacher = (6 * 8 * FORWARD * passes / SECOND / 3600 for passes in (6, 3))
    assert cost.trials[str(found.teachers[0].folder)] == pytest.approx(teacher)
    assert [cost.trials[str(t.folder)] for t in found.trials] == pytest.approx([student] * 2)
    assert cost.total == pytest.approx(teacher + 2 * student)
    left = cost_of(found, done=found.teachers)
    assert left.total == pytest.approx(2 * student)
    assert cost_of(plan(train={"steps": 12})).total == pytest.approx(cost.total + 2 * student)
    assert cost_of(plan(train={"precision": "bf16"})).trials[str(plan().teachers[0].folder)] == pytest.approx(teacher)
    bf16 = plan(train={"precision": "bf16"})
    assert cost_of(bf16).trials[str(bf16.trials[0].folder)] == pytest.approx(student / 2)


def test_measuring_searching_and_curves_count(plan):
    evaluate = {"num_samples": 100, "nfe": [1, 3], "teacher_nfe": [5], "repeats": 2,
                "teacher_samplers": [{"name": "ddim", "nfe": 10}]}  # fmt: skip
    search = {"nfe": [2, 3], "num_samples": 50, "trials": "all"}
    found = plan(evaluate=evaluate, search=search)
    teacher, student = found.teachers[0].run, found.trials[0].run
    config = found.config
    assert evaluations(teacher, config.evaluate, config.search) == (200 * (5 + 10), 0)
    assert evaluations(student, config.evaluate, config.search) == (200 * (1 + 3), 50 * 9 * (1 + 2))
    assert evaluations(student, None, None) == (0, 0)
    more = cost_of(found).total - cost_of(plan()).total
    assert more == pytest.approx((200 * 15 + 2 * (200 * 4 + 50 * 9 * 3)) * FORWARD / SECOND / 3600)
    best = cost_of(plan(evaluate=evaluate, search={**search, "trials": "best"})).total
    assert cost_of(found).total - best == pytest.approx(50 * 9 * 3 * FORWARD / SECOND / 3600)
    curve = cost_of(plan(curve={"every": 2, "num_samples": 100, "nfe": [1, 2]})).total - cost_of(plan()).total
    assert curve == pytest.approx(2 * 3 * 100 * 3 * FORWARD / SECOND / 3600)
    rare = cost_of(plan(curve={"every": 4, "num_samples": 100, "nfe": [1, 2]})).total - cost_of(plan()).total
    assert rare == pytest.approx(2 * 2 * 100 * 3 * FORWARD / SECOND / 3600), "after 4 of 6 steps, and at the end"
