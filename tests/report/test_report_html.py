"""report.html: well-formed, complete, without anything from elsewhere, whatever the records hold."""

import base64
import hashlib
import math
import re

import numpy as np
import pytest
from page_checks import Page
from report_factory import curve, decay, evaluation, experiment, figure_three, search, teacher, trial, write

from cmray.core.errors import CmrayError
from cmray.report.beside import beside_published
from cmray.report.build import write_report
from cmray.report.compare import compare, default_folder
from cmray.report.figure_curve import curve_sheet
from cmray.report.grids import image_grid
from cmray.report.inline import png_size
from cmray.report.load import load_experiment
from cmray.report.missing import missing_of

HOSTILE = '</script><script>alert("1")</script><img src=x onerror=alert(1)> & "quoted" \'single\' {{ 7 * 7 }} $x$'


def page_of(record, folder, **options) -> Page:
    page = Page(write_report(record, folder, **options)["report.html"].read_text())
    assert page.problems == []
    return page


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_report(figure_three(), tmp_path_factory.mktemp("whole"), published="lsun-cat256")


def test_the_page_holds_everything(whole):
    page = Page(whole["report.html"].read_text())
    assert page.problems == []
    for one in figure_three().trials:
        assert one.label in page.text
    for said in [
        "Best in one step: heun · digits · N=9", "boom", "During training", "By sampling steps",
        "Searched sampling times", "What differs", "What was trained", "What the numbers were measured with",
        "no sample pictures of fig3", "† trained",
        "1 teacher and 11 trials", "Published FID on lsun-cat256", "not begun", "at step 300",
    ]:  # fmt: skip
        assert said in page.text, said
    assert page.tags.count("figure") == 4 + 4 + 6, "panels during training, by steps, and searches"
    anchors = [target for tag, target in page.links if tag == "a" and target.startswith("#")]
    assert anchors == [f"#{name}" for name in (
        "findings", "missing", "curve", "steps", "search", "table", "published", "samples", "differences", "cost",
        "provenance",
    )]  # fmt: skip


def test_nothing_comes_from_elsewhere(whole):
    text = whole["report.html"].read_text()
    page = Page(text)
    for tag, target in page.links:
        assert target.startswith(("#", "data:")), (tag, target)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    policy = next(v for tag, name, v in page.attributes if tag == "meta" and name == "content" and "default-src" in v)
    assert policy.startswith("default-src 'none'; img-src data:;")
    script = text[text.index("<script>") + 8 : text.rindex("</script>")]
    assert f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}" in policy
    downloads = {target for tag, target in page.links if tag == "a" and target.startswith("data:")}
    stored = {base64.b64decode(target.partition(",")[2]) for target in downloads}
    assert stored == {whole[name].read_bytes() for name in ("table.csv", "table.md", "table.tex", "published.csv")}


def test_hostile_names_stay_text(tmp_path):
    record = experiment(
        teacher(),
        trial(HOSTILE, [HOSTILE], name="a", events=decay(9, 2), searches=[search((1, 0.5, 2.0))],
              evaluations=[evaluation(2.0), evaluation(1.5, nfe=2, times=[80.0, 1.0], dataset=HOSTILE)]),
        trial(f"b {HOSTILE}", [HOSTILE], name="b", status="failed", error=f"Error: {HOSTILE}", events=decay(9, 3)),
        name=HOSTILE, description=HOSTILE,
    )  # fmt: skip
    page = page_of(record, tmp_path)
    assert page.tags.count("script") == 1
    assert "img" not in page.tags
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.text.count('alert("1")') >= 5
    assert "{{ 7 * 7 }}" in page.text


@pytest.mark.parametrize(
    "record",
    [
        experiment(),
        experiment(teacher()),
        experiment(trial("a", status="waiting")),
        experiment(trial("a", status="running", events=curve(3.0))),
        experiment(trial("a", evaluations=[evaluation(math.nan)]), trial("b", evaluations=[evaluation(2.0)])),
        experiment(trial("a", status="failed", error="")),
        experiment(trial("a"), trial("a", name="other")),
    ],
)
def test_whatever_is_missing(tmp_path, record):
    text = page_of(record, tmp_path).text
    assert record.name in text
    for one in record.trials:
        assert one.label in text
        if one.status != "finished":
            assert one.status in text


def test_what_is_missing_is_said_with_its_reason():
    failed = trial("f", status="failed", error="Traceback\n  File\nValueError: no\n\n", events=curve(3.0, 2.0),
                   config={"train": {"steps": 800}})  # fmt: skip
    unknown = trial("s", status="running", events=curve(3.0)).model_copy(update={"status": "stopped"})
    record = experiment(
        trial("ok", evaluations=[evaluation(1.0)]), trial("unmeasured"), failed, unknown, trial("w", status="waiting")
    )
    assert [(one.trial.label, one.status, one.reason) for one in missing_of(record)] == [
        ("unmeasured", "not measured", "trained, but not measured yet (the others are)"),
        ("f", "failed", "ValueError: no (at step 200 of 800)"),
        ("s", "stopped", "at step 100"),
        ("w", "waiting", "not begun"),
    ]


def test_a_status_of_the_future_is_shown(tmp_path):
    later = trial("s", events=decay(9, 3)).model_copy(update={"status": "put aside"})
    page = page_of(experiment(trial("a", evaluations=[evaluation(1.0)]), later), tmp_path)
    assert "1 put aside" in page.text
    assert ("td", "class", "status status-put-aside") in page.attributes


def test_sample_pictures_are_inside(tmp_path):
    write(tmp_path, experiment(trial("a", evaluations=[evaluation(1.0)]), trial("b", evaluations=[evaluation(2.0)])))
    record = load_experiment(tmp_path, "fig3")
    image_grid(np.zeros((2, 1, 8, 8), np.uint8), record.folder / "samples/b.png", columns=2)
    (record.folder / "samples/a.png").write_bytes(b"no picture")
    page = page_of(record, tmp_path / "out")
    (uri,) = [target for tag, target in page.links if tag == "img"]
    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    assert data == (record.folder / "samples/b.png").read_bytes()
    assert {("img", "width", str(png_size(data)[0])), ("img", "alt", "fig3: b")} <= set(page.attributes)
    image_grid(np.ones((4, 1, 8, 8), np.uint8), record.folder / "samples/samples.png", columns=2)
    assert [t for tag, t in page_of(record, tmp_path / "out").links if tag == "img"] != [uri]


def test_values_sort_by_all_their_digits(tmp_path):
    page = page_of(experiment(trial("a", evaluations=[evaluation(1 / 3)]), trial("b", status="waiting")), tmp_path)
    assert ("td", "data-sort", repr(1 / 3)) in page.attributes
    assert ("table", "class", "sortable") in page.attributes


CIFAR = {"seed": 0, "data": {"path": "data/cifar10", "name": None, "dataset": None}}
INCEPTION = {"metric": "fd/inception-clean", "extractor": "inception-clean", "dataset": "cifar10", "split": "train"}


def test_published_numbers_stand_apart(tmp_path):
    record = experiment(
        trial("digits", config=CIFAR, evaluations=[evaluation(1.0)]),
        trial("few", config=CIFAR, evaluations=[evaluation(2.0, **INCEPTION)]),
        trial("fid", config=CIFAR, evaluations=[evaluation(3.5, **INCEPTION, n=50_000)]),
        trial(
            "of other images", config=CIFAR, evaluations=[evaluation(4.0, **{**INCEPTION, "dataset": "mine"}, n=50_000)]
        ),
    )
    frame = beside_published(record, "cifar10")
    own = frame[frame["origin"] == "measured here"]
    assert list(own["method"]) == ["fid"]
    assert set(frame["origin"]) == {"published", "measured here"}
    cd = frame[(frame["method"] == "CD") & (frame["nfe"] == 1)]
    assert list(cd["fid"]) == [3.55]
    files = write_report(record, tmp_path)
    assert "Published FID on cifar10" in Page(files["report.html"].read_text()).text
    assert "3.55" not in files["table.csv"].read_text()
    assert "published" in files["published.csv"].read_text()
    assert "| published | CD | 1 | 3.55 |" in files["table.md"].read_text()
    assert "published & CD & 1 & 3.55 &" in files["table.tex"].read_text()
    without = write_report(experiment(teacher()), tmp_path)
    assert "published.csv" not in without
    assert not (tmp_path / "published.csv").exists()


def test_unknown_published_data_is_one_line_before_anything_is_written(tmp_path):
    with pytest.raises(CmrayError, match=r"no published numbers for 'cifar'; did you mean 'cifar10'"):
        write_report(figure_three(), tmp_path / "out", published="cifar")
    assert not (tmp_path / "out").exists()


def test_two_experiments_side_by_side(tmp_path):
    shared = teacher()
    first = experiment(shared, trial("cd · l2", ["p"], events=decay(9, 3), evaluations=[evaluation(3.0)]), name="one")
    measured = [evaluation(2.0), evaluation(7.0, n=99)]
    other = trial("cd · l2", ["p"], experiment="other", events=decay(9, 2), evaluations=measured)  # of the same content
    both = compare([first, experiment(shared, other, name="two", num_samples=1797)])
    assert [t.label for t in both.trials] == ["one and two · edm teacher", "one · cd · l2", "two · cd · l2"]
    files = write_report(both, tmp_path)
    page = Page(files["report.html"].read_text())
    assert page.problems == []
    sheet = curve_sheet(both)
    assert sheet is not None
    (plot,) = sheet.plots
    assert len({(entry.text, entry.colour) for entry in plot.entries if entry.marker}) == 2, (
        "each has a line of its own"
    )
    header, *rows = files["table.csv"].read_text().splitlines()
    assert header.startswith("label,experiment,role,")
    assert "fd/digits · 1 NFE, n=1797" in header
    assert "fd/digits · 1 NFE, n=99" in header
    assert [row.split(",")[:2] for row in rows] == [["edm teacher", '"one'], ["cd · l2", "two"], ["cd · l2", "one"]]
    assert "Comparison of one and two" in page.text
    assert page.tags.count("figure") == 1, "panels of one name lie over each other"
    assert "no sample pictures of two" in page.text
    again = write_report(both, tmp_path / "again")["report.html"]
    assert again.read_text() == files["report.html"].read_text(), "the same records give the same page"
    assert default_folder(both).name == "report-with-two"
    assert default_folder(first).name == "report"


def test_what_cannot_be_compared():
    with pytest.raises(CmrayError, match="'fig3' is named twice"):
        compare([figure_three(), figure_three()])
    with pytest.raises(CmrayError, match="two or more"):
        compare([figure_three()])
