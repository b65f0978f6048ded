"""`cmray search`: what it says of ties and noise, which option it names, and what it refuses before it samples."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from cli_run import good, here, snapshot
from shell_words import check

from cmray.cli.search import rivals, unknown_noise
from cmray.core.protocol import BLOCK
from cmray.engine.searching import least_for_noise
from cmray.tracking.records import Provenance, Search, SearchPoint


@pytest.fixture
def copied(models, tmp_path) -> Path:
    """A storage folder of its own, for what leaves records."""
    return Path(shutil.copytree(models.storage, tmp_path / "storage"))


def record(points: list[SearchPoint], n: int = 10_000, confirm: int | None = None) -> Search:
    """A search of one time, 0.5."""
    provenance = Provenance(
        metric="fd/digits", extractor="digits", extractor_sha256="e", reference_sha256="r", dataset="digits",
        split="train", reference_n=1797, n=n, seed_first=0, seed_block=256, sampler="multistep", nfe=2,
        times=[80.0, 0.5], weights="student", weights_sha256="w", searched=True,
    )  # fmt: skip
    return Search(
        key="k", nfe=2, times=[80.0, 0.5], value=1.0, points=points, rounds=[len(points)], provenance=provenance,
        seconds=1.0, time=0.0, confirm_samples=confirm,
    )  # fmt: skip


def point(sigma: float, tied: bool = False, confirmed: float | None = None) -> SearchPoint:
    return SearchPoint(index=1, sigma=sigma, value=1.0, error=0.1, tied=tied, confirmed=confirmed)


def test_a_tie_is_told_of_the_samples_that_were_measured():
    chosen = point(0.5, confirmed=0.9)
    points = [chosen, point(0.6, True, 0.91), point(0.7, True), point(0.4, True), point(0.8, False, 1.4), point(9.0)]
    assert rivals(record(points, confirm=14_336)) == [
        "on 14,336 samples 0.5 cannot be told apart from 0.6",
        "on 10,000 samples 0.5 cannot be told apart from 0.7, 0.4, which were not measured again",
    ]
    assert rivals(record([point(0.5), point(0.4, True), point(0.6, True)])) == [
        "on 10,000 samples 0.5 cannot be told apart from 0.6, 0.4"
    ]
    assert rivals(record([chosen, point(0.8, False, 1.4), point(9.0)], confirm=14_336)) == []


def test_noise_that_is_not_known_is_said_with_the_limit():
    words = "the noise of these values is not known: it takes more than 5,119 samples"
    assert unknown_noise([record([point(0.5)], n=5119)]) == words
    assert unknown_noise([record([point(0.5)], n=5120)]) == ""


def test_a_small_search_says_that_its_noise_is_not_known(models, copied):
    ran = good(here("search", models.student, "--storage", copied, "--num-samples", 64, "--num-sigmas", 5))
    assert "the noise of these values is not known: it takes more than 5,119 samples\n" in ran.out
    assert "told apart" not in ran.out
    picture = copied / models.student / "searches" / "search.png"
    assert f"picture: {picture}\n" in ran.out
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "MLflow" not in ran.out
    assert not (copied / "mlflow.db").exists(), "a store that nobody made is not made for this"


def test_a_search_for_other_weights_is_for_them_up_to_the_next_command(models, copied):
    arguments = ("search", models.student, "--storage", copied, "--num-samples", 64, "--num-sigmas", 5)
    usual, own = good(here(*arguments)), good(here(*arguments, "--weights", "student"))
    (line,) = [line for line in own.out.splitlines() if line.startswith("next: ")]
    assert "--weights student" in line
    assert "--weights" not in usual.out
    told = [good(here(*arguments, *more, "--json")).json[0] for more in ((), ("--weights", "student"))]
    assert [one["provenance"]["weights"] for one in told] == ["ema 0.9", "student"]
    assert len(list((copied / models.student / "searches").glob("*.json"))) == 2
    words = shlex.split(line.removeprefix("next: "))
    check(words)
    picture = copied.parent / "x.png"
    shown = good(here(*(picture if word == "samples.png" else word for word in words[1:]))).out
    assert ", student, " in " ".join(shown.split())
    wrong = here(*arguments, "--weights", "ema 0.5")
    assert wrong.code == 2
    assert "has no weights 'ema 0.5'" in wrong.err


REFUSED = {
    "confirm on few": (("--num-samples", 5119, "--confirm", 9000), "--confirm 9000: on --num-samples 5119 the noise"),
    "confirm on fewer": (("--confirm", 10_000), "--confirm 10000: confirm_samples 10000 must be more"),
    "confirm of the reference": (("--mode", "reference", "--confirm", 20_000), "--confirm 20000: confirm_samples is"),
    "continuous": (("--mode", "continuous", "--num-sigmas", 10), "--num-sigmas 10: num_sigmas is 10, but mode"),
    "tolerance": (("--tolerance", 0.1), "--tolerance 0.1: tolerance is 0.1, but mode is ternary"),
    "mode": (("--mode", "exact"), "--mode exact: "),
    "budget": (("--nfe", "4", "--num-sigmas", 4), "--nfe 4: nfe 4 needs"),
    "kid": (("--metric", "kid/digits"), "--metric kid/digits: searches minimise one Fréchet distance"),
    "two": (("--metric", "fd/digits,is/digits"), "searches minimise one Fréchet distance"),
    "unknown": (("--metric", "fd/digit"), "--metric: unknown metric 'fd/digit'"),
    "unknown option": (("--metric", "{name: fd/digits, extractor: {path: x}}"), "--metric: fd/digits: "),
    "yaml": (("--metric", "{name: "), "--metric {name: : write"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused_before_anything_is_sampled(models, what):
    options, words = REFUSED[what]
    before = snapshot(models.storage)
    ran = here("search", models.student, "--storage", models.storage, *options)
    assert ran.code == 2, f"{ran.out}\n{ran.err}"
    assert ran.out == ""
    (line,) = ran.err.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert snapshot(models.storage) == before


def test_the_limit_of_the_options_is_that_of_the_engine():
    assert least_for_noise(BLOCK) == 5120


def test_a_metric_with_options_is_the_one_of_its_name(models, copied):
    arguments = ("search", models.student, "--storage", copied, "--num-samples", 64, "--num-sigmas", 5, "--json")
    plain = good(here(*arguments)).json
    assert good(here(*arguments, "--metric", "{name: fd/digits}")).json == plain
    assert len(list((copied / models.student / "searches").glob("*.json"))) == 1, "the record is the same"


def test_a_damaged_record_is_one_line(models, copied):
    arguments = ("search", models.student, "--storage", copied, "--num-samples", 64, "--num-sigmas", 5)
    good(here(*arguments))
    (file,) = (copied / models.student / "searches").glob("*.json")
    file.write_text("{")
    ran = here(*arguments)
    assert ran.code == 2
    assert (
        ran.err.strip()
        == f"error: {file} cannot be read as a search: it is damaged; remove it and run the command again"
    )


def test_a_search_in_features_of_ones_own(models, copied, tmp_path):
    arguments = ("search", models.student, "--storage", copied, "--num-samples", 128, "--num-sigmas", 5)
    bare = here(*arguments, "--metric", "fd/trained")
    assert bare.code == 2
    assert "extractor 'trained' needs path: FILE" in bare.err
    assert len(bare.err.strip().splitlines()) == 1
    file = tmp_path / "digits.safetensors"
    good(here("features", "train", "digits", "--out", file, "--epochs", 1, "--storage", tmp_path / "s"))
    wanted = f"{{name: fd/trained, extractor: {{path: {file}}}}}"
    ran = good(here(*arguments, "--metric", wanted))
    assert "fd/trained: Fréchet distance to" in ran.out
    (found,) = good(here(*arguments, "--metric", wanted, "--json")).json
    assert found["provenance"]["metric"] == "fd/trained"
