"""State dicts of openai's repositories: recognised by keys and shapes, converted exactly, others refused."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from cli_run import here
from exchange_files import ADM, CPU, equal_bits, random_net, run_of

from cmray.core.errors import CheckpointError
from cmray.engine.model import load_model
from cmray.exchange import MismatchError, sources
from cmray.exchange.importing import Asked, import_checkpoint
from cmray.exchange.published import PUBLISHED
from cmray.metrics.lpips import LPIPS
from cmray.nn.adm import ADMConfig
from cmray.nn.adm_state import to_openai

EDM = {"name": "edm"}
HEADS = {"head_width": 32}
VARIANTS = {
    "plain": {},
    "conv": {"resblock_updown": False},
    "shift": {"scale_shift_norm": False},
    "three levels": {"multipliers": [1, 2, 2], "blocks": 2, "attention_resolutions": [8, 2]},
    "no attention": {"attention_resolutions": [], "multipliers": [2, 4]},
    "one level": {"multipliers": [1], "attention_resolutions": []},
}


def net_of(classes=0, **changes):
    run = run_of({**ADM, **changes, "class_conditional": bool(classes)}, EDM)
    return random_net(run, (3, 8, 8), classes), run.net


def saved(path, state):
    torch.save(state, path)
    return path


@pytest.mark.parametrize("classes", [0, 10])
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_architecture_is_recognised(tmp_path, variant, classes):
    net, config = net_of(classes, **VARIANTS[variant])
    path = saved(tmp_path / "some.pt", to_openai(net.state_dict(), config))
    foreign = sources.get("openai")(net=HEADS, image_size=8).read(path)
    if len(config.multipliers) == 1:  # nothing tells how a network of one level would resample
        config = config.model_copy(update={"resblock_updown": True})
    assert foreign.net == config
    assert (foreign.shape, foreign.num_classes) == ((3, 8, 8), classes)
    equal_bits(foreign.state, net.state_dict())


def test_half_precision_becomes_float32(tmp_path):
    net, config = net_of()
    state = {key: tensor.half() for key, tensor in to_openai(net.state_dict(), config).items()}
    foreign = sources.get("openai")(net=HEADS, image_size=8).read(saved(tmp_path / "half.pt", state))
    equal_bits(foreign.state, {key: tensor.half().float() for key, tensor in net.state_dict().items()})


def interleaved(state, heads):
    """The same attention as guided-diffusion keeps it: 1-D convolutions, rows of qkv (head, q k v, d)."""
    out = {}
    for key, tensor in state.items():
        if ".qkv." in key:
            tensor = tensor.unflatten(0, (3, heads[key.rpartition(".")[0]], -1)).transpose(0, 1).flatten(0, 2)
        out[key] = tensor.squeeze(-1) if key.endswith((".qkv.weight", ".proj_out.weight")) else tensor
    return out


def test_the_interleaved_order_of_guided_diffusion_is_recognised(tmp_path):
    net, config = net_of(multipliers=[2, 4])
    theirs = to_openai(net.state_dict(), config)
    widths = {key.rpartition(".")[0]: len(t) // 3 // 32 for key, t in theirs.items() if key.endswith("qkv.bias")}
    assert set(widths.values()) == {4}
    changed = interleaved(theirs, widths)
    assert not torch.equal(changed["middle_block.1.qkv.bias"], theirs["middle_block.1.qkv.bias"])
    foreign = sources.get("openai")(net=HEADS, image_size=8).read(saved(tmp_path / "guided.pt", changed))
    equal_bits(foreign.state, net.state_dict())
    # where the rank does not tell, the user does
    flat = {
        key: t.unsqueeze(-1) if key.endswith(("qkv.weight", "proj_out.weight")) else t for key, t in changed.items()
    }
    path = saved(tmp_path / "flat.pt", flat)
    told = sources.get("openai")(net=HEADS, image_size=8, qkv_order="heads").read(path)
    equal_bits(told.state, net.state_dict())
    plain = sources.get("openai")(net=HEADS, image_size=8).read(path)
    assert not torch.equal(plain.state["middle.1.qkv.weight"], net.state_dict()["middle.1.qkv.weight"])


def test_another_architecture_is_a_table_and_one_line(tmp_path):
    net, config = net_of()
    state = to_openai(net.state_dict(), config)
    del state["middle_block.0.in_layers.2.bias"]
    state["time_embed.9.weight"] = torch.zeros(2)
    state["out.2.bias"] = torch.zeros(5)
    path = saved(tmp_path / "odd.pt", state)
    with pytest.raises(MismatchError, match="1 missing, 1 unexpected, 1 of another shape") as refused:
        sources.get("openai")(net=HEADS, image_size=8).read(path)
    rows = {row.key: (row.in_file, row.in_network) for row in refused.value.rows}
    assert rows == {
        "middle_block.0.in_layers.2.bias": (None, (64,)),
        "time_embed.9.weight": ((2,), None),
        "out.2.bias": ((5,), (3,)),
    }
    ran = here("import", "openai", path, "--out", tmp_path / "out", "--image-size", 8, "--objective", "edm")
    assert ran.code == 2
    assert "time_embed.9.weight" in ran.err
    assert ran.err.strip().splitlines()[-1].startswith("error: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["odd.pt"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, r"does not hold an ADM U-Net .*'time_embed\.0\.weight' is missing"),
        ({"a": 1}, "is not a mapping of names to weights: 'a' is a int"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, r"'a' is a torch\.int64"),
        ([1], "holds a list; a state dict is a mapping"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path, state, message):
    with pytest.raises(CheckpointError, match=message):
        sources.get("openai")().read(saved(tmp_path / "x.pt", state))


def test_a_network_of_unknown_size_needs_it(tmp_path):
    net, config = net_of()
    path = saved(tmp_path / "x.pt", to_openai(net.state_dict(), config))
    with pytest.raises(CheckpointError, match=r"2 levels of 32, 64 channels, .* give --image-size"):
        sources.get("openai")().read(path)


def test_a_learned_variance_is_refused(tmp_path):
    net, config = net_of()
    state = {**to_openai(net.state_dict(), config), "out.2.weight": torch.zeros(6, 32, 3, 3)}
    with pytest.raises(CheckpointError, match="predicts 6 channels for images of 3"):
        sources.get("openai")(image_size=8).read(saved(tmp_path / "x.pt", state))


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("old", [True, False])
def test_a_malicious_file_does_not_run(tmp_path, old):
    path, mark = tmp_path / "evil.pt", tmp_path / "ran"
    torch.save({"a": Evil(mark)}, path, _use_new_zipfile_serialization=not old)
    ran = here("import", "openai", path, "--out", tmp_path / "out")
    assert (ran.code, mark.exists()) == (2, False)
    assert "nothing of it was run" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    path.write_bytes(pickle.dumps({"a": Evil(mark)}))
    assert here("import", "openai", path, "--out", tmp_path / "out").code == 2
    assert not mark.exists()


def test_a_published_name_says_what_the_file_is(tmp_path):
    net, config = net_of()
    state = to_openai(net.state_dict(), config)
    for name in ("edm_imagenet64_ema.pt", "cd_imagenet64_lpips.pt", "ct_cat256.pt"):
        source = sources.get("openai")(net=HEADS, image_size=8)
        facts, assumed = import_checkpoint(source, saved(tmp_path / name, state), tmp_path / f"o-{name}", Asked())
        assert facts.run.objective.name == name[:2].replace("ed", "edm")
        assert assumed == ""
        assert facts.run.data.path == ("data/lsun-cat256" if "cat" in name else "data/imagenet64")
        model = load_model(tmp_path / f"o-{name}", CPU)
        assert model.weights == "ema 0.0"
        assert model.sampler(1).nfe == 1
    lpips = import_checkpoint(source, tmp_path / "cd_imagenet64_lpips.pt", tmp_path / "again", Asked())[0].run
    assert isinstance(lpips.objective.distance, LPIPS), "what it was trained in is flagged beside FID"
    assert lpips.objective.search_num_sigmas(1) == 40


def test_every_published_name_makes_a_run():
    from cmray.config.run import RunConfig

    assert len(PUBLISHED) == 12 + 9
    for known in PUBLISHED.values():
        teacher = {"checkpoint": "x"} if known.objective["name"] == "cd" else None
        RunConfig.model_validate({
            "data": known.data, "net": ADMConfig(), "objective": known.objective, "teacher": teacher,
            "train": {"steps": 1, "batch_size": 1},
        })  # fmt: skip
