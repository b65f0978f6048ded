"""The one-step sampler as a graph: what onnxruntime computes is what the network does."""

from __future__ import annotations

import pytest
import torch
from cli_run import good, here
from exchange_files import ADM, CPU, SONG, made, one_step

from cmray.engine.model import load_model

NETS = {
    "mlp": ({"name": "mlp", "width": 16, "depth": 2}, 0),
    "unet": ({"name": "unet", "channels": 16, "attention_levels": [1]}, 10),
    "adm": (ADM, 10),
    "ddpmpp": ({"name": "ddpmpp", **SONG}, 0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETS)
def test_onnxruntime_computes_the_same(tmp_path, name):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (pip install -e '.[export]')")
    import onnxruntime

    net, classes = NETS[name]
    checkpoint = made(tmp_path, net, (1, 8, 8), classes)
    good(here("export", checkpoint, "--format", "onnx", "--out", tmp_path / "out"))
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["README.md", "model.onnx"]
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    assert [i.name for i in session.get_inputs()] == (["noise", "labels"] if classes else ["noise"])
    model = load_model(checkpoint, CPU)
    for batch in (1, 5):
        z = torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))
        label = torch.arange(batch) if classes else None
        given = {"noise": z.numpy()} | ({} if label is None else {"labels": label.numpy()})
        (image,) = session.run(["image"], given)
        assert image.std() > 0.05
        torch.testing.assert_close(torch.from_numpy(image), one_step(model, z, label), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ({"name": "edm"}, "is a denoiser, whose one step is no sample"),
    ],
)
def test_what_has_no_one_step_is_refused(tmp_path, objective, message):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (pip install -e '.[export]')")
    checkpoint = made(tmp_path, NETS["mlp"][0], (1, 8, 8), 0, objective)
    ran = here("export", checkpoint, "--format", "onnx", "--out", tmp_path / "out")
    assert ran.code == 2
    assert message in ran.err
    assert not (tmp_path / "out").exists()
