"""Pipelines of diffusers: written so that diffusers itself samples the same, and read back without it."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from cli_run import good, here
from exchange_files import ADM, CPU, equal_bits, made, one_step, weights_of

from cmray.config.checkpoint_facts import read_checkpoint_facts
from cmray.core.errors import CheckpointError
from cmray.engine.model import load_model
from cmray.exchange import sources
from cmray.exchange.unet2d import adm_fields, unet_config
from cmray.nn.adm import ADMConfig

VARIANTS = {
    "attention below": ({}, 0),
    "attention above": ({"attention_resolutions": [8]}, 10),
    "convolutions": ({"resblock_updown": False, "scale_shift_norm": False, "multipliers": [1, 2, 2], "blocks": 2}, 3),
    "heads": ({"head_width": None, "heads": 2}, 0),
    "one level": ({"multipliers": [1], "attention_resolutions": []}, 0),
}


def exported(folder, variant):
    changes, classes = VARIANTS[variant]
    checkpoint = made(folder, {**ADM, **changes}, (3, 8, 8), classes, sigma_max=60.0)
    good(here("export", checkpoint, "--format", "diffusers", "--out", folder / "pipe", "--licence", "mit"))
    return checkpoint, folder / "pipe"


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_round_trip_changes_no_bit(tmp_path, variant):
    first, pipe = exported(tmp_path, variant)
    good(here("import", "diffusers", pipe, "--out", tmp_path / "back"))
    equal_bits(weights_of(tmp_path / "back"), weights_of(first))
    before, after = read_checkpoint_facts(first), read_checkpoint_facts(tmp_path / "back")
    assert after.run.noise == before.run.noise
    assert after.run.objective.name == "ct"
    assert after.run.objective.search_num_sigmas(1) == 18
    assert after.origin is not None
    assert after.origin.licence == "mit"


def test_the_published_networks_have_diffusers_configs():
    """What the README of diffusers' converted models says of them: 64-wide heads, residual resampling."""
    config = unet_config(ADMConfig(class_conditional=True), (3, 64, 64), 1000)
    assert config["block_out_channels"] == [192, 384, 576, 768]
    assert config["down_block_types"] == ["ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3]
    assert config["up_block_types"] == [*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"]
    assert config["attention_head_dim"] == 64
    fields, shape, classes = adm_fields(config, "x")
    assert ADMConfig(**fields) == ADMConfig(class_conditional=True)
    assert (shape, classes) == ((3, 64, 64), 1000)


@pytest.mark.parametrize(
    ("net", "objective", "noise", "message"),
    [
        ({"name": "mlp", "width": 16}, None, {}, "a network of kind mlp, which none of diffusers' networks computes"),
        (ADM, {"name": "edm"}, {}, "is a denoiser model; ConsistencyModelPipeline is for consistency models"),
        (ADM, {"name": "ect", "init": "random", "stages": 2}, {}, "has EDM's preconditioning"),
        ({**ADM, "multipliers": [2, 2]}, None, {}, "net.multipliers begins with 2"),
        ({**ADM, "noise_scale": 1}, None, {}, "net.noise_scale is 1.0"),
        (
            {**ADM, "head_width": None, "heads": 2, "attention_resolutions": [8]},
            None,
            {},
            "heads of 16 and 32 channels",
        ),
    ],
)
def test_what_no_pipeline_expresses_is_refused_in_one_line(tmp_path, net, objective, noise, message):
    checkpoint = made(tmp_path, net, (3, 8, 8), 0, objective or {"name": "ct", "num_sigmas": 18}, **noise)
    ran = here("export", checkpoint, "--format", "diffusers", "--out", tmp_path / "out")
    assert ran.code == 2
    assert message in ran.err
    assert len(ran.err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("file", "field", "value", "message"),
    [
        ("unet", "act_fn", "gelu", "act_fn is 'gelu'; cmray's adm network has 'silu'"),
        ("unet", "time_embedding_type", "fourier", "time_embedding_type is 'fourier'"),
        ("unet", "_class_name", "UNet2DConditionModel", "_class_name is 'UNet2DConditionModel'"),
        ("unet", "down_block_types", ["CrossAttnDownBlock2D"], "blocks of DownBlock2D"),
        ("unet", "block_out_channels", [32, 48], "multiples of the first"),
        ("unet", "num_class_embeds", 5, "1 missing, such as class_embedding.weight"),
        ("unet", "layers_per_block", 2, "missing"),
        ("scheduler", "_class_name", "DDPMScheduler", "is 'DDPMScheduler'; the scheduler of a consistency model is"),
        ("scheduler", "sigma_max", "x", "sigma_max is 'x'; it must be a number above 0"),
    ],
)
def test_other_pipelines_are_refused_with_the_field_that_says_so(tmp_path, file, field, value, message):
    _, pipe = exported(tmp_path, "attention below")
    path = pipe / file / ("config.json" if file == "unet" else "scheduler_config.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(CheckpointError, match=message):
        sources.get("diffusers")().read(pipe)


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"a pipeline of diffusers is a folder with model_index\.json"):
        sources.get("diffusers")().read(tmp_path)
    _, pipe = exported(tmp_path, "attention below")
    weights = pipe / "unet" / "diffusion_pytorch_model.safetensors"
    state = weights.read_bytes()
    weights.write_bytes(state[:50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        sources.get("diffusers")().read(pipe)
    weights.unlink()
    with pytest.raises(CheckpointError, match="has no weights: looked for"):
        sources.get("diffusers")().read(pipe)
    (pipe / "model_index.json").write_text('{"_class_name": "DDPMPipeline"}')
    with pytest.raises(CheckpointError, match="is a 'DDPMPipeline' of diffusers"):
        sources.get("diffusers")().read(pipe)


def test_the_objective_of_others_has_to_be_said(tmp_path):
    _, pipe = exported(tmp_path, "attention below")
    (pipe / "README.md").unlink()
    ran = here("import", "diffusers", pipe, "--out", tmp_path / "back")
    assert ran.code == 2
    assert "say --objective edm, cd or ct" in ran.err
    told = good(here("import", "diffusers", pipe, "--out", tmp_path / "back", "--objective", "cd", "--json")).json
    assert told["objective"]["num_sigmas"]["num_sigmas"] == 18


def test_neither_way_needs_diffusers(tmp_path, monkeypatch):
    for name in ("diffusers", "onnx", "onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it raises
    checkpoint, pipe = exported(tmp_path, "attention above")
    good(here("import", "diffusers", pipe, "--out", tmp_path / "back"))
    ran = here("export", checkpoint, "--format", "onnx", "--out", tmp_path / "graph")
    assert ran.code == 2
    assert "pip install 'cmray[export]'" in ran.err
    assert not (tmp_path / "graph").exists()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["attention above", "convolutions", "heads"])
def test_diffusers_samples_the_same(tmp_path, variant):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install -e '.[export]')")
    checkpoint, folder = exported(tmp_path, variant)
    pipe = diffusers.ConsistencyModelPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    model = load_model(checkpoint, CPU)
    g = torch.Generator().manual_seed(3)
    z = torch.randn(4, 3, 8, 8, generator=g)
    label = torch.tensor([0, 2, 1, 2]) if model.num_classes else None
    told = pipe(batch_size=4, class_labels=label, latents=z.clone(), num_inference_steps=1, output_type="pt").images
    ours = one_step(model, z, label).clamp(-1, 1) / 2 + 0.5
    assert ours.std() > 0.05
    torch.testing.assert_close(told, ours, rtol=0, atol=1e-4)
    # two steps at levels of the grid, with the noise that diffusers draws between them
    generator = torch.Generator().manual_seed(5)
    told = pipe(
        batch_size=4, class_labels=label, latents=z.clone(), num_inference_steps=None, timesteps=[9, 0],
        generator=generator, output_type="pt",
    ).images  # fmt: skip
    levels = [float(s) for s in pipe.scheduler.sigmas[:2]]
    assert levels[0] == pytest.approx(60.0)

    left = [z, torch.randn(z.shape, generator=torch.Generator().manual_seed(5))]

    class Given:
        def draw(self):
            return left.pop(0)

    ours = model.sampler(2, levels).sample(model.denoise, Given(), label).clamp(-1, 1) / 2 + 0.5
    torch.testing.assert_close(told, ours, rtol=0, atol=1e-4)
