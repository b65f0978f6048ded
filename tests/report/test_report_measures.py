"""Measures of all kinds in a report: which way they rank, what is said of them, and their intervals."""

import io

import pandas as pd
import pytest
from report_factory import evaluation, experiment, provenance, trial

from cmray.metrics.measures.base import measures
from cmray.report.build import summary_sentences
from cmray.report.columns import HIGHER_IS_BETTER, LOWER_IS_BETTER, shown_metric, value_columns
from cmray.report.latex import to_latex
from cmray.report.notes import evaluation_notes, metric_note, protocol_notes
from cmray.report.tables import fd_table, footnotes, format_interval, to_csv, to_markdown
from cmray.tracking.records import SeedBlock


def measured(value, low=None, high=None, **changes):
    note = changes.pop("note", "")
    return evaluation(value, **changes).model_copy(update={"low": low, "high": high, "note": note})


def test_the_reports_own_list_of_measures_is_that_of_the_registry():
    for better, titles in (("lower", LOWER_IS_BETTER), ("higher", HIGHER_IS_BETTER)):
        assert titles == {n: measures.get(n).title for n in measures.names() if measures.get(n).better == better}


def test_a_metric_where_higher_is_better_ranks_the_other_way():
    record = experiment(
        *(trial(str(v), evaluations=[evaluation(v, metric="recall/digits")]) for v in (0.2, 0.7, 0.5)),
        metric="recall/digits",
    )
    assert list(fd_table(record)["label"]) == ["0.7", "0.5", "0.2"]
    assert "Best in one step: 0.7 with recall/digits 0.7" in summary_sentences(record)[0]


def test_options_and_references_split_columns():
    def headers(**change):
        cells = [evaluation(1.0, options={"k": 3}), evaluation(2.0, **{"options": {"k": 3}, **change})]
        return [
            c.header for c in value_columns(experiment(*(trial(str(i), evaluations=[c]) for i, c in enumerate(cells))))
        ]

    assert len(headers()) == 1
    for change, said in (
        ({"options": {"k": 5}}, "k=5"),
        ({"resizer": "clean"}, "resizer clean"),
        ({"seed_blocks": 3}, "3 blocks of seeds"),
        ({"reference_n": None}, "reference n=None"),
    ):
        assert any(header.endswith(f", {said}") for header in headers(**change)), said
        assert len(headers(**change)) == 2


def test_intervals_stand_beside_their_values():
    record = experiment(trial("a", evaluations=[measured(3.67, 3.55, 3.80)]), trial("b", evaluations=[measured(4.2)]))
    frame = fd_table(record)
    assert "| **3.67** [3.55, 3.80] |" in to_markdown(frame)
    assert "| 4.20 |" in to_markdown(frame)
    assert r"\textbf{3.67} [3.55, 3.80]" in to_latex(frame)
    back = pd.read_csv(io.StringIO(to_csv(frame)))
    assert list(back["fd/digits · 1 NFE: low"][:1]) == [3.55]
    assert back["fd/digits · 1 NFE: high"].isna()[1]


def blocks(*values, better="lower"):
    one = evaluation(sum(values) / len(values), seed_blocks=len(values))
    return one.model_copy(
        update={"blocks": [SeedBlock(seed_first=i, value=v, low=None, high=None) for i, v in enumerate(values)],
                "better": better}
    )  # fmt: skip


def test_blocks_of_seeds():
    assert format_interval(blocks(1.0, 2.0, 3.0)) == "2.000 ± 1.000, min 1.000 (3 blocks)"
    assert format_interval(blocks(1.0, 2.0, 3.0, better="higher")).endswith("max 3.000 (3 blocks)")
    record = experiment(trial("a", evaluations=[blocks(1.0, 2.0, 3.0)]))
    assert any("the best of them ± spread: a 1.00 ± 1." in note for note in footnotes(record))


@pytest.mark.parametrize(
    ("low", "high", "value", "shown"),
    [
        (3.55, 3.8, 3.67, "3.670 [3.550, 3.800]"),
        (None, None, 0.00123, "0.00123"),
        (0.0, 0.1, 0.05, "0.05 [0.000, 0.100]"),
    ],
)
def test_a_value_with_its_interval(low, high, value, shown):
    assert format_interval(measured(value, low, high)) == shown


def test_fid_is_what_is_measured_in_inception_on_50000_samples():
    inception = {"metric": "fd/inception-clean", "extractor": "inception-clean"}
    fid, fewer, other = provenance(**inception, n=50_000), provenance(**inception, n=49_999), provenance(n=50_000)
    assert shown_metric(fid) == "FID (fd/inception-clean)"
    assert (shown_metric(fewer), shown_metric(other)) == ("fd/inception-clean", "fd/digits")
    assert metric_note(fid).endswith("This is FID.")
    assert "not FID, which takes 50,000" in metric_note(fewer)
    assert metric_note(other).endswith("It is not FID.")
    kid = provenance(metric="kid/inception-clean", extractor="inception-clean", n=50_000, options={"subsets": 9})
    assert "FID" not in metric_note(kid).replace("KID", "")
    assert "(subsets = 9)" in metric_note(kid)


def test_what_metrics_share_is_said_once():
    found = [provenance(), provenance(metric="recall/digits"), provenance(n=5)]
    assert len(protocol_notes(found)) == 2
    assert protocol_notes(found)[0].startswith("fd/digits, recall/digits: n = 1,797 samples")
    (published,) = protocol_notes([provenance(dataset="fid.npz", split="published", reference_n=None)])
    assert "published statistics fid.npz (fedcba98)" in published
    (alone,) = protocol_notes([provenance(reference_sha256="", dataset="", split="", reference_n=0)])
    assert "no reference" in alone


def test_notes_below_a_table_of_numbers():
    found = [measured(1.0, 0.9, 1.1, note="n=1,797: biased upwards by about 0.1"), measured(1.0, metric="is/digits")]
    notes = evaluation_notes(found, {"digits": "grayscale replicated to 3 channels"})
    text = "\n".join(notes)
    assert "n = 1,797 is below 10,000" in text
    assert "digits: grayscale replicated to 3 channels." in text
    assert "fd/digits at 1 NFE: n=1,797: biased upwards by about 0.1." in text
    assert "is/digits at 1 NFE: no interval" in text
    enough = evaluation_notes([measured(1.0, 0.9, 1.1, n=10_000)], {})
    assert not any("below" in note for note in enough)


def test_models_whose_intervals_overlap_are_not_told_apart():
    cells = {"a": (2.0, 1.8, 2.2), "b": (2.1, 1.9, 2.3), "c": (2.6, 2.4, 2.8), "d": (2.15, None, None)}
    record = experiment(*(trial(name, evaluations=[measured(*cell)]) for name, cell in cells.items()))
    sentences = summary_sentences(record)
    assert "By their 95% intervals it cannot be told from b (2.10)." in sentences
    alone = experiment(*(trial(n, evaluations=[measured(*cells[n])]) for n in ("a", "c")))
    assert not any("told from" in sentence for sentence in summary_sentences(alone))
