"""NVlabs' pickles: networks come out of them with their weights, and nothing in them runs."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from cli_run import good, here
from exchange_files import ADM, CPU, SONG, equal_bits, random_net, run_of, snapshot, weights_of

from cmray.core.errors import CheckpointError
from cmray.engine.model import load_model
from cmray.exchange import sources
from cmray.exchange.edm_keys import adm_to_edm
from cmray.exchange.inert import ALLOWED, read_pickle, tensors_of
from cmray.nn.song_state import PREFIX, to_edm

EDM = {"name": "edm"}
NETS = {
    "ddpmpp": {"name": "ddpmpp", **SONG},
    "ncsnpp": {"name": "ncsnpp", **SONG},
    "adm": {**ADM, "head_width": 64, "multipliers": [2, 2], "noise_scale": 1.0},
}


def file_of(folder: Path, name: str, classes: int = 0, protocol: int | None = None, augment: bool = False):
    """A snapshot in a file, and the network whose weights it has."""
    run = run_of({**NETS[name], "class_conditional": bool(classes)}, EDM)
    net = random_net(run, (3, 8, 8), classes)
    if name == "adm":
        state, kind = adm_to_edm(net.state_dict(), run.net, [8, 4]), "DhariwalUNet"
        state["enc.4x4_down.conv0.resample_filter"] = torch.full((1, 1, 2, 2), 0.25)
    else:
        state = {k.removeprefix(PREFIX): t for k, t in to_edm(net.state_dict(), run.net, 8).items()}
        kind = "SongUNet"
    if augment:
        state["map_augment.weight"] = torch.randn(16, 9)
    path = folder / f"{name}.pkl"
    path.write_bytes(snapshot({k: t.clone() for k, t in state.items()}, kind, protocol=protocol))
    return path, net


@pytest.mark.parametrize(
    ("name", "classes", "protocol"),
    [("ddpmpp", 0, 2), ("ddpmpp", 0, 5), ("ddpmpp", 10, 4), ("ncsnpp", 0, 4), ("adm", 0, 4), ("adm", 10, 4)],
)
def test_networks_come_out_as_they_went_in(tmp_path, name, classes, protocol):
    path, net = file_of(tmp_path, name, classes, protocol, augment=name != "adm")
    foreign = sources.get("edm")().read(path)
    assert foreign.shape == (3, 8, 8)
    assert foreign.num_classes == classes
    assert foreign.net.name == name
    assert foreign.noise["sigma_data"] == 0.5
    assert foreign.net.dropout == 0.1
    equal_bits(foreign.state, net.state_dict())


def test_the_checkpoint_computes_what_the_network_does(tmp_path):
    path, net = file_of(tmp_path, "ncsnpp", 10)
    out = tmp_path / "checkpoint"
    told = good(here("import", "edm", path, "--out", out, "--data", "digits", "--json")).json
    assert told["origin"]["file"] == "ncsnpp.pkl"
    assert told["objective"]["name"] == "edm"
    x, c_noise, label = torch.randn(4, 3, 8, 8), torch.randn(4), torch.tensor([0, 3, 9, 1])
    alike = copy.deepcopy(net).to(memory_format=torch.channels_last)  # as models are laid out on a CPU
    with torch.no_grad():
        assert torch.equal(load_model(out, CPU).net(x, c_noise, label), alike(x, c_noise, label))
        torch.testing.assert_close(alike(x, c_noise, label), net(x, c_noise, label))
    assert load_model(out, CPU).weights == "ema 0.0"
    equal_bits(weights_of(out), net.state_dict())


def test_attention_of_dhariwal_unet_is_ours(tmp_path):
    """Rows of qkv are (head, d, q k v) there: computed here as NVlabs' code does, from the formula."""
    run = run_of(NETS["adm"], EDM)
    net = random_net(run, (3, 8, 8), 0)
    attention = net.middle[1]
    state = adm_to_edm(net.state_dict(), run.net, [8, 4])
    x, heads = torch.randn(2, 64, 4, 4), 1
    normed = attention.norm(x)
    qkv = torch.nn.functional.conv2d(normed, state["dec.4x4_in0.qkv.weight"], state["dec.4x4_in0.qkv.bias"])
    q, k, v = qkv.reshape(2 * heads, 64 // heads, 3, -1).unbind(2)
    shares = torch.einsum("ncq,nck->nqk", q, k / 64**0.5).softmax(2)
    mixed = torch.einsum("nqk,nck->ncq", shares, v).reshape(x.shape)
    torch.testing.assert_close(attention(x), x + attention.out(mixed))


def test_the_embedding_of_dhariwal_unet_is_ours():
    """It takes c_noise as it is, where openai's takes 1000 c_noise."""
    net = random_net(run_of(NETS["adm"], EDM), (3, 8, 8), 0)
    c_noise = torch.tensor([0.002, 0.5, 80.0]).log() / 4
    freqs = (1 / 10000) ** (torch.arange(16) / 16)
    angles = c_noise[:, None] * freqs
    torch.testing.assert_close(net.embedding.fourier(c_noise), torch.cat([angles.cos(), angles.sin()], dim=1))


class Evil:
    """What a pickle can do: call anything."""

    def __init__(self, call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_malicious_pickle_does_not_run(tmp_path, protocol):
    import os

    mark, path = tmp_path / "ran", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"ema": Evil((os.system, (f"touch {mark}",)))}, protocol))
    ran = here("import", "edm", path, "--out", tmp_path / "out")
    assert ran.code == 2
    assert not mark.exists()
    assert "nothing of the file was run" in ran.err
    assert "posix.system" in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pkl"]


@pytest.mark.parametrize("call", [(eval, ("1",)), (getattr, ("", "join")), (__import__, ("os",)), (open, ("x", "w"))])
def test_no_builtin_function_can_be_named(tmp_path, call):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil(call)))
    with pytest.raises(CheckpointError, match="which is no part of a network's data"):
        read_pickle(path)


def test_memory_in_a_pickle_is_read_by_the_restricted_reader_too(tmp_path):
    """Storages are pickles in bytes within the pickle."""
    import torch.storage

    mark = tmp_path / "ran"
    inner = pickle.dumps(Evil((exec, (f"open({str(mark)!r}, 'w')",))))
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil((torch.storage._load_from_bytes, (inner,)))))
    with pytest.raises(CheckpointError, match="is not a whole pickle"):
        read_pickle(path)
    assert not mark.exists()


def test_a_tensor_cannot_reach_outside_its_memory(tmp_path):
    storage = torch.zeros(4).storage()
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(Evil((torch._utils._rebuild_tensor_v2, (storage, 0, (100,), (1,), False, {})))))
    with pytest.raises(CheckpointError, match="is not a whole pickle"):
        read_pickle(path)


def test_everything_that_a_pickle_may_name_is_ours_or_a_plain_container():
    from collections import OrderedDict

    for (module, name), stand_in in ALLOWED.items():
        ours = isinstance(stand_in, str) or getattr(stand_in, "__module__", "") == "cmray.exchange.inert"
        assert ours or stand_in is OrderedDict, f"{module}.{name}"


def test_other_snapshots_are_refused_in_one_line(tmp_path):
    path, _ = file_of(tmp_path, "ddpmpp")
    state = tensors_of(read_pickle(path)["ema"]["_modules"]["model"])
    path.write_bytes(snapshot(state, outer="VPPrecond"))
    with pytest.raises(CheckpointError, match="holds a network in VPPrecond; cmray samples those in EDMPrecond"):
        sources.get("edm")().read(path)
    path.write_bytes(snapshot(state, kind="Transformer"))
    with pytest.raises(CheckpointError, match="the network Transformer"):
        sources.get("edm")().read(path)
    path.write_bytes(pickle.dumps({"G_ema": 1, "D": 2}))
    with pytest.raises(CheckpointError, match="holds no network 'ema', but: G_ema, D"):
        sources.get("edm")().read(path)
    path.write_bytes(b"not a pickle")
    with pytest.raises(CheckpointError, match="is not a whole pickle"):
        sources.get("edm")().read(path)
    del state["enc.8x8_block0.conv1.weight"]
    path.write_bytes(snapshot(state))
    with pytest.raises(CheckpointError, match=r"1 missing, such as enc\.8x8_block0\.conv1\.weight"):
        sources.get("edm")().read(path)
