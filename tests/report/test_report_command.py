"""`cmray report` on records: what it writes where, and what it refuses."""

import pytest
from cli_run import good, here
from report_factory import decay, evaluation, experiment, teacher, trial, write


@pytest.fixture
def storage(tmp_path):
    for name, value in (("first", 3.0), ("second", 2.0)):
        one = trial("cd", ["p"], experiment=name, events=decay(9, value), evaluations=[evaluation(value)])
        own = teacher().model_copy(update={"experiment": name})
        write(tmp_path / "storage", experiment(own, one, name=name))
    return tmp_path / "storage"


def refused(ran, *words):
    assert (ran.code, ran.out) == (2, "")
    assert len(ran.err.strip().splitlines()) == 1, ran.err
    for word in words:
        assert word in ran.err


def test_a_page_in_the_experiments_own_folder(storage):
    ran = good(here("report", "first", "--storage", storage))
    page = storage / "first/report/report.html"
    assert page.is_file()
    assert str(page) in ran.out.replace("\n", "")


def test_two_side_by_side_leave_the_own_report_alone(storage):
    good(here("report", "first", "--storage", storage))
    own = (storage / "first/report/report.html").read_text()
    told = good(here("report", "first", "--compare", "second", "--storage", storage, "--json")).json
    folder = storage / "first/report-with-second"
    assert told["files"]["report.html"] == str(folder / "report.html")
    assert "Best in one step: second · cd with fd/digits 2.00 (n = 1,797)." in told["sentences"]
    assert (storage / "first/report/report.html").read_text() == own
    table = good(here("report", "first", "--compare", "second", "--storage", storage)).out
    assert "experiment" in table


def test_published_numbers_on_request(storage, tmp_path):
    good(here("report", "first", "--published", "imagenet64", "--out", tmp_path / "out", "--storage", storage))
    assert "Published FID on imagenet64" in (tmp_path / "out/report.html").read_text()
    assert (tmp_path / "out/published.csv").is_file()


def test_bad_input_is_one_line(storage, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    (tmp_path / "file").write_text("")
    refused(here("report", "frist", "--storage", storage), "frist", "did you mean 'first'")
    refused(here("report", "first", "--compare", "secnod", "--storage", storage), "secnod", "did you mean 'second'")
    refused(here("report", "first", "--compare", "first", "--storage", storage), "--compare", "named twice")
    refused(here("report", "first", "--published", "cifar", "--storage", storage), "--published", "'cifar10'")
    refused(here("report", "first", "--out", tmp_path / "file", "--storage", storage), "file", "folder")
    (tmp_path / "file").unlink()
    assert sorted(tmp_path.rglob("*")) == before
