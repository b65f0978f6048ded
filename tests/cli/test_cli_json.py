"""What `--json` prints is what cmray.cli.documents says, of which docs/json.md is made."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, NotRequired, Union, get_args, get_origin

import pytest
from cli_run import ROOT, Ran, good, here
from pydantic import BaseModel, TypeAdapter, ValidationError
from typing_extensions import get_type_hints, is_typeddict

from cmray.cli.console import print_json
from cmray.cli.documents import DOCUMENTS, Checked, KnownJob, Plan, Provenance
from cmray.cli.sweep import _as_json
from cmray.cluster.jobs import Job
from cmray.cluster.sweep import Outcome
from cmray.core.checks import Check
from cmray.report.load import load_experiment

JOB = Job("fig3-12", "FAILED", "fig3", "12", "s3://b/f", "ab+changes", 1.5, None, 1, "it failed", "python -m cmray")


def complete(kind: Any, value: Any, where: str = "") -> None:
    """Asserts that every mapping has the fields of its type: all that are promised, none that is not."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Annotated, NotRequired):
        complete(inner[0], value, where)
    elif origin in (list, tuple) and isinstance(value, list):
        for i, part in enumerate(value):
            complete(inner[0], part, f"{where}.{i}")
    elif origin is Union or "UnionType" in type(kind).__name__:
        for part in inner:
            if value is not None and (is_typeddict(part) or (isinstance(part, type) and issubclass(part, BaseModel))):
                complete(part, value, where)
    elif is_typeddict(kind):
        hints = get_type_hints(kind, include_extras=True)
        needed = {name for name, hint in hints.items() if get_origin(hint) is not NotRequired}
        assert needed <= set(value) <= set(hints), f"{where}: {set(value) ^ set(hints)}"
        for name in value:
            complete(hints[name], value[name], f"{where}.{name}")
    elif isinstance(kind, type) and issubclass(kind, BaseModel):
        assert set(value) == set(kind.model_fields), f"{where}: {set(value) ^ set(kind.model_fields)}"
        for name in value:
            complete(kind.model_fields[name].annotation, value[name], f"{where}.{name}")


def check(command: str, ran: Ran) -> Any:
    """Holds what a command has printed to its document; gives it back."""
    return checked(command, good(ran).out)


def checked(command: str, text: str) -> Any:
    value = json.loads(text)
    TypeAdapter(DOCUMENTS[command]).validate_json(text, strict=True)
    complete(DOCUMENTS[command], value)
    return value


@pytest.fixture
def copied(models, tmp_path) -> Path:
    return Path(shutil.copytree(models.storage, tmp_path / "storage"))


def printed(value: Any, capsys) -> str:
    print_json(value)
    return capsys.readouterr().out


def test_the_check_itself_finds_what_is_missing_and_what_is_too_much():
    plan = {"experiment": "a", "description": "", "trials": [], "seconds": 1.0, "gpu_hours": None, "search": None}
    for wrong in (plan, {**plan, "evaluate": None, "more": 1}):
        with pytest.raises(AssertionError):
            complete(Plan, wrong)
    with pytest.raises(ValidationError):
        checked("cmray sweep --dry-run", json.dumps({**plan, "evaluate": None, "experiment": 3}))
    with pytest.raises(AssertionError):
        complete(list[Provenance], [{"metric": "fd/digits"}])


def test_train_and_the_models_commands(models, copied, tmp_path):
    where = ("--storage", copied, "--json")
    tracked = (*where, "--tracking-uri", "none")
    trained = check("cmray train", here("train", models.student_file, *tracked))
    assert trained["status"] == "finished"
    few = ("--num-samples", 64)
    check("cmray evaluate", here("evaluate", models.student, *tracked, *few, "--nfe", "1,2", "--seed-blocks", 2))
    (found,) = check("cmray search", here("search", models.student, *tracked, *few, "--num-sigmas", 5))
    assert found["times"][0] == 80
    images = tmp_path / "x.npz"
    drawn = check("cmray sample", here("sample", models.student, *tracked, "--num", 3, "--out", images))
    assert drawn["num"] == 3
    way = check("cmray sample", here("sample", models.student, *tracked, "--trajectory", tmp_path / "w.png"))
    assert "out" not in way
    check("cmray evaluate", here("evaluate", "--images", images, "--reference-data", "digits", *where))
    check("cmray report", here("report", "student", *where))


def test_edit_in_a_file_and_in_a_folder(models, copied, tmp_path):
    edit = ("edit", "inpaint", models.student, "--input", "digits", "--take", 1, "--num", 1, "--box", "2,2,4,4")
    tracked = ("--storage", copied, "--json", "--tracking-uri", "none")
    one = check("cmray edit", here(*edit, "--out", tmp_path / "a.png", *tracked))
    many = check("cmray edit", here(*edit, "--out", tmp_path / "folder", *tracked))
    assert json.loads((tmp_path / "folder" / "edit.json").read_text()) == many
    assert "file" not in one["results"][0]
    assert (tmp_path / "folder" / many["results"][0]["file"]).is_file()
    ways = ("edit", "interpolate", models.student, "--between", "1,2", "--frames", 2, "--out", tmp_path / "way.png")
    assert check("cmray edit", here(*ways, *tracked))["results"][1]["seed_to"] == 2


def test_export_and_import(models, copied, tmp_path):
    out = tmp_path / "exported"
    given = ("--format", "safetensors", "--out", out, "--storage", copied, "--tracking-uri", "none", "--json")
    check("cmray export", here("export", models.student, *given))
    check("cmray import", here("import", "safetensors", out, "--out", tmp_path / "checkpoint", "--json"))


def test_plans_and_sweeps(copied, capsys):
    plan = ("sweep", ROOT / "experiments" / "quickstart.yaml", "--dry-run", "--json", "--storage", copied)
    assert check("cmray sweep --dry-run", here(*plan))["seconds"] > 0
    record = load_experiment(copied, "student")
    outcome = Outcome(record, {"report.html": Path("report.html")}, 1, 0, 2, left=("evaluation",))
    told = checked("cmray sweep", printed(_as_json(outcome, "cmray ui"), capsys))
    assert told["trials"]
    assert told["left"] == ["evaluation"]


def test_init_data_features_and_theory(tmp_path):
    check("cmray init", here("init", tmp_path / "experiments", "--json"))
    folder = tmp_path / "digits"
    check("cmray data prepare", here("data", "prepare", "digits", "--out", folder, "--json"))
    check("cmray data info", here("data", "info", folder, "--json"))
    train = ("features", "train", folder, "--out", tmp_path / "f.safetensors", "--epochs", 1, "--json")
    check("cmray features train", here(*train, "--storage", tmp_path / "s"))
    few = ("--set", "theory.intervals=[16, 32, 64, 128]", "--set", "theory.nodes=16", "--out", tmp_path / "t")
    check("cmray theory", here("theory", ROOT / "experiments" / "theory.yaml", *few, "--json"))


def test_jobs_and_checks(capsys):
    """Their servers are tested elsewhere; what is printed of them is one dataclass each."""
    assert list(get_type_hints(KnownJob)) == [field.name for field in fields(Job)]
    assert list(get_type_hints(Checked)) == [field.name for field in fields(Check)]
    checked("cmray jobs stop", printed(JOB.as_dict(), capsys))
    checked("cmray jobs list", printed([JOB.as_dict()], capsys))
    checked("cmray jobs submit", printed({**JOB.as_dict(), "new": True}, capsys))
    checked("cmray jobs logs", printed({**JOB.as_dict(), "logs": "a\nb"}, capsys))
    checked("cmray doctor", printed([vars(Check("python", True, "3.11"))], capsys))


def test_every_command_with_json_has_a_document():
    from test_cli_help import COMMANDS

    told = {command.removesuffix(" --dry-run") for command in DOCUMENTS}
    assert told == {f"cmray {command}" for command in COMMANDS if command not in ("studio", "ui")}
