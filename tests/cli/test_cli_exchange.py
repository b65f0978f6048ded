"""`cmray import` and `cmray export`: what they make works with every other command, and bad input is one line."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_run import CD, Ran, apart, good, here, snapshot, write
from exchange_files import ADM, made, random_net, run_of
from own_names import own
from shell_words import check
from small_sweep import Watcher, sweep

from cmray.nn.adm_state import to_openai

MLP = {"name": "mlp", "width": 16, "depth": 1}


def teacher_file(folder: Path) -> Path:
    """A .pt of the layout of openai/consistency_models, of a network for 8x8 digits."""
    run = run_of(ADM, {"name": "edm"})
    path = folder / "digits.pt"
    torch.save(to_openai(random_net(run, (1, 8, 8), 0).state_dict(), run.net), path)
    return path


def imported(folder: Path, objective: str, *more: object) -> Path:
    out = folder / f"imported-{objective}"
    good(
        here(
            "import", "openai", teacher_file(folder), "--out", out, "--objective", objective, "--image-size", 8,
            "--net", "{head_width: 32}", "--data", "digits", *more,
        )
    )  # fmt: skip
    return out


@pytest.mark.parametrize("command", ["import", "export"])
def test_help_has_an_example(command):
    text = " ".join(good(here(command, "--help")).out.split())
    assert f"Example: cmray {command}" in text
    assert "--json" in text


def test_the_lists_of_names_in_help_are_what_is_registered():
    from cmray.cli.exchange import FORMATS, SOURCES
    from cmray.exchange import sources, targets

    assert own(sources) == SOURCES
    assert sorted([*own(targets), "pyfunc"]) == FORMATS


@pytest.mark.slow
def test_an_imported_model_can_be_sampled_evaluated_and_searched(tmp_path):
    out, storage = imported(tmp_path, "ct"), tmp_path / "storage"
    good(here("sample", out, "--nfe", 1, "--num", 4, "--out", tmp_path / "a.npz", "--storage", storage))
    assert np.load(tmp_path / "a.npz")["arr_0"].shape == (4, 8, 8, 1)
    good(here("data", "prepare", "digits", "--out", storage / "datasets" / "digits"))
    told = good(here("evaluate", out, "--nfe", "1,2", "--num-samples", 64, "--json", "--storage", storage)).json
    assert len(told) == 2
    assert {e["weights"] for e in told} == {"ema 0.0"}
    good(here("search", out, "--nfe", 2, "--num-samples", 64, "--storage", storage, "--tracking-uri", "none"))
    good(here("export", out, "--format", "safetensors", "--out", tmp_path / "card", "--storage", storage))
    assert "| fd/digits |" in (tmp_path / "card" / "README.md").read_text()
    ran = here("sample", out, "--weights", "student", "--out", tmp_path / "b.npz", "--storage", storage)
    assert ran.code == 2
    assert "has no weights 'student'; it has: ema 0.0" in ran.err


@pytest.mark.slow
def test_an_imported_teacher_teaches_in_a_sweep(tmp_path):
    """Two CD trials from it, trained, evaluated and compared with the teacher's own numbers absent."""
    teacher = imported(tmp_path, "edm", "--licence", "mit")
    file = write(
        tmp_path / "study.yaml", CD,
        teacher={"checkpoint": str(teacher)},
        net=ADM, noise={"sigma_data": 0.5},
        train={"steps": 4, "batch_size": 8, "checkpoint_every": 4},
        curve={"every": 4, "num_samples": 16},
        panels={"N": {"grid": {"objective.num_sigmas": [5, 9]}}},
        evaluate={"num_samples": 32, "nfe": [1]},
    )  # fmt: skip
    watcher = Watcher()
    outcome = sweep(file, tmp_path / "storage", "none", watcher)
    assert not watcher.lines
    results = sorted((tmp_path / "storage" / "study").glob("cd-*/result.json"))
    assert len(results) == 2
    assert outcome is not None
    again = sweep(file, tmp_path / "storage", "none", watcher)
    assert again is not None
    assert sorted((tmp_path / "storage" / "study").glob("cd-*/result.json")) == results


def test_a_student_of_another_network_is_told_so(tmp_path):
    teacher = imported(tmp_path, "edm")
    file = write(tmp_path / "x.yaml", CD, teacher={"checkpoint": str(teacher)}, noise={"sigma_data": 0.5})
    ran = here("sweep", file, "--dry-run", "--storage", tmp_path / "storage")
    assert ran.code == 2
    assert "net.name is mlp instead of adm" in ran.err


BAD = [
    (("import", "opnai", "x.pt", "--out", "o"), "unknown source 'opnai'; did you mean 'openai'?"),
    (("import", "openai", "x.pt", "--out", "o"), "x.pt does not exist; cmray downloads no weights"),
    (("import", "openai", "x.pt", "--out", "no/such/o"), "does not exist"),
    (("import", "openai", "x.pt", "--out", "full"), "exists and is not an empty folder"),
    (
        ("import", "openai", "full", "--out", "o"),
        "full is a folder; a checkpoint of openai/consistency_models is a file",
    ),
    (("import", "openai", "text.pt", "--out", "o"), "text.pt is not a file of torch.save"),
    (("import", "edm", "text.pt", "--out", "o"), "text.pt is not a whole pickle"),
    (("import", "edm", "text.pt", "--out", "o", "--qkv-order", "heads"), "--qkv-order is about openai's files"),
    (("import", "openai", "text.pt", "--out", "o", "--qkv-order", "x"), "--qkv-order is 'x'; it is thirds or heads"),
    (("import", "openai", "text.pt", "--out", "o", "--net", "[1]"), "--net is '[1]'"),
    (("import", "openai", "ok.pt", "--out", "o", "--image-size", "8"), "say --objective edm, cd or ct"),
    (
        ("import", "openai", "ok.pt", "--out", "o", "--image-size", "8", "--objective", "cdd"),
        "unknown objective 'cdd'; did you mean 'cd'?",
    ),
    (
        ("import", "openai", "ok.pt", "--out", "o", "--image-size", "8", "--net", "{haed_width: 32}"),
        "net.haed_width: unknown key; did you mean 'head_width'?",
    ),
    (("import", "openai", "ok.pt", "--out", "o", "--image-size", "7"), "images of 7x7 do not fit the 2 levels"),
    (("export", "model", "--format", "gguf", "--out", "o"), "unknown format 'gguf'"),
    (("export", "model", "--format", "onnx", "--out", "full"), "exists and is not an empty folder"),
    (("export", "model", "--format", "onnx", "--out", "o", "--nfe", "2"), "--nfe is about pyfunc"),
    (("export", "model", "--format", "pyfunc", "--out", "o", "--licence", "mit"), "has no model card"),
    (("export", "nobody", "--format", "onnx", "--out", "o"), "no trial or checkpoint 'nobody'"),
    (("export", "model", "--format", "safetensors", "--out", "o", "--weights", "ema 0.5"), "has no weights 'ema 0.5'"),
]


@pytest.fixture(scope="module")
def corner(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corner")
    (folder / "full").mkdir()
    (folder / "full" / "x").write_text("x")
    (folder / "text.pt").write_text("some text\n")
    teacher_file(folder).rename(folder / "ok.pt")
    made(folder / "r", MLP, (1, 8, 8)).rename(folder / "model")
    return folder


@pytest.mark.parametrize(("words", "message"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_and_nothing_is_written(corner, monkeypatch, words, message):
    monkeypatch.chdir(corner)
    before = snapshot(corner)
    ran = here(*words, "--storage", corner / "none") if words[0] == "export" else here(*words)
    assert ran.code == 2, ran.out
    assert message in ran.err
    assert ran.err.strip().splitlines()[-1].count("error:") == 1
    assert snapshot(corner) == before


def following(ran: Ran) -> list[str]:
    """The words of the command that is proposed."""
    (line,) = [line for line in ran.out.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: ").partition("; in an experiment: ")[0])


@pytest.mark.parametrize("name", ["plain", "two words", "don't", "a;b", "$x"])
def test_the_next_commands_can_be_run_whatever_a_folder_is_called(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    source, out = teacher_file(tmp_path), tmp_path / name / name
    out.parent.mkdir()
    more = ("--objective", "ct", "--image-size", 8, "--net", "{head_width: 32}", "--data", "digits")
    words = following(good(here("import", "openai", source, "--out", out, *more)))
    assert words[:3] == ["cmray", "sample", str(out)]
    check(words)
    good(here(*words[1:], "--num", 1))
    assert (tmp_path / "samples.png").is_file()
    exported = out.parent / f"{name} card"
    words = following(good(here("export", out, "--format", "safetensors", "--out", exported)))
    assert words[:4] == ["cmray", "import", "safetensors", str(exported)]
    check(words)
    good(here(*words[1:]))
    assert (tmp_path / "CHECKPOINT" / "meta.json").is_file()


@pytest.mark.parametrize("name", ["plain", "two words"])
def test_the_next_command_of_other_formats_names_the_folder(tmp_path, name):
    pytest.importorskip("mlflow")
    model = made(tmp_path, MLP, (1, 8, 8))
    words = following(good(here("export", model, "--format", "pyfunc", "--out", tmp_path / name)))
    check(words)
    assert words[:5] == ["mlflow", "models", "serve", "-m", str(tmp_path / name)]
    pytest.importorskip("onnxscript")
    words = following(good(here("export", model, "--format", "onnx", "--out", tmp_path / f"{name} onnx")))
    ran = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, check=False)
    assert ran.returncode == 0 or "No module named 'onnxruntime'" in ran.stderr, ran.stderr
    assert str(tmp_path / f"{name} onnx" / "model.onnx") in words[2]


@pytest.mark.parametrize("command", ["import", "export"])
def test_a_link_to_a_folder_is_no_new_folder(corner, tmp_path, monkeypatch, command):
    monkeypatch.chdir(corner)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    words = {
        "import": ("import", "openai", "ok.pt", "--image-size", 8, "--net", "{head_width: 32}", "--objective", "ct"),
        "export": ("export", "model", "--format", "safetensors", "--storage", corner / "none"),
    }[command]
    ran = here(*words, "--out", tmp_path / "link")
    assert ran.code == 2
    assert "is a link; name a folder" in ran.err
    assert (tmp_path / "link").is_symlink()
    assert list((tmp_path / "empty").iterdir()) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "link"]


def test_an_mlflow_folder_serves_the_images_of_sample(tmp_path):
    import pandas as pd

    pytest.importorskip("mlflow")
    model = made(tmp_path, MLP, (1, 8, 8))
    good(here("export", model, "--format", "pyfunc", "--out", tmp_path / "served", "--nfe", 2))
    good(here("sample", model, "--nfe", 2, "--num", 3, "--seed", 5, "--out", tmp_path / "a.npz"))
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(tmp_path / "served"))
    images = loaded.predict(pd.DataFrame([{"seed": 5, "count": 3}]))
    assert np.array_equal(images, np.load(tmp_path / "a.npz")["arr_0"])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "checkpoints", "served"]


@pytest.mark.slow
def test_the_commands_run_as_processes(tmp_path):
    """As people run them: import, sample, export, and the printed next command."""
    path = teacher_file(tmp_path)
    words = ("--image-size", 8, "--net", "{head_width: 32}", "--objective", "ct", "--data", "digits")
    ran = good(apart(tmp_path, "import", "openai", path, "--out", tmp_path / "c", *words))
    assert f"next: cmray sample {tmp_path / 'c'} --nfe 1" in ran.out
    ran = good(apart(tmp_path, "export", tmp_path / "c", "--format", "safetensors", "--out", tmp_path / "e"))
    assert f"next: cmray import safetensors {tmp_path / 'e'} --out CHECKPOINT" in ran.out
