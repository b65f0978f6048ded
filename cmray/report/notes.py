"""Sentences that a reader needs beside a number: what it is, what it was measured with, what its n does to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cmray.core.protocol import FEW
from cmray.report.columns import HIGHER_IS_BETTER, LOWER_IS_BETTER, is_fid, lower_is_better
from cmray.tracking.records import Evaluation, Provenance


def metric_note(p: Provenance) -> str:
    """`precision/digits: precision in features of a digits classifier, higher is better (k = 3).`"""
    measure = p.metric.partition("/")[0]
    title = {**LOWER_IS_BETTER, **HIGHER_IS_BETTER}.get(measure, measure)
    whose = "a digits classifier" if p.extractor.startswith("digits") else f"the network '{p.extractor}'"
    options = ", ".join(f"{name} = {value}" for name, value in p.options.items())
    text = f"{p.metric}: {title} in features of {whose}, {'lower' if lower_is_better(p.metric) else 'higher'} is better"
    text += f" ({options})." if options else "."
    if measure != "fd":
        return text
    if is_fid(p):
        return f"{text} This is FID."
    if p.extractor.startswith("inception-"):
        return f"{text} It is not FID, which takes 50,000 samples."
    return f"{text} It is not FID."


def protocol_notes(found: Sequence[Provenance]) -> list[str]:
    """Samples, reference and extractor of numbers, a sentence for all metrics that share them."""
    metrics: dict[str, list[str]] = {}
    for p in found:
        names = metrics.setdefault(_protocol(p), [])
        names += [p.metric] if p.metric not in names else []
    return [f"{', '.join(names)}: {said}" for said, names in metrics.items()]


def _protocol(p: Provenance) -> str:
    count = p.n * p.seed_blocks
    n = f"n = {p.n:,} samples" if p.seed_blocks == 1 else f"{p.seed_blocks} blocks of n = {p.n:,} samples"
    if p.sampler or p.nfe:
        n += f", seeds {p.seed_first} to {p.seed_first + count - 1} in blocks of {p.seed_block}"
    if p.split == "published":
        against = f"reference: published statistics {p.dataset} ({p.reference_sha256[:8]})"
    elif p.reference_sha256:
        shown = "an unknown number of" if p.reference_n is None else f"{p.reference_n:,}"
        against = f"reference {shown} images of {p.dataset}/{p.split} ({p.reference_sha256[:8]})"
    else:
        against = "no reference"
    resized = f", resizer {p.resizer}" if p.resizer != "none" else ""
    return f"{n}; {against}, extractor {p.extractor} ({p.extractor_sha256[:8]}){resized}."


def few_notes(found: Sequence[Provenance]) -> list[str]:
    """What too few samples do to numbers; empty where there are enough."""
    few = sorted({p.n for p in found if p.n < FEW})
    if not few:
        return []
    said = ", ".join(f"{n:,}" for n in few)
    return [
        f"n = {said} is below {FEW:,}: Fréchet distances come out too high, and precision, recall, density, coverage "
        "and Inception Scores move with n; compare with numbers of the same n only."
    ]


def evaluation_notes(found: Sequence[Evaluation], extractor_notes: Mapping[str, str]) -> list[str]:
    """What belongs below a table of numbers, each said once.

    Args:
        extractor_notes: what extractors do to images of this shape, by their names.
    """
    notes: dict[str, None] = {}
    for e in found:
        p = e.provenance
        if p.split == "published":
            against = f"published statistics {p.dataset} ({p.reference_sha256[:8]})"
        else:
            against = f"{p.reference_n or 0:,} images of {p.dataset} ({p.reference_sha256[:8]})"
        notes[metric_note(p).rstrip(".") + (f"; against {against}." if p.reference_sha256 else ".")] = None
    for name in dict.fromkeys(e.provenance.extractor for e in found):
        if extractor_notes.get(name):
            notes[f"{name}: {extractor_notes[name]}."] = None
    notes |= dict.fromkeys(few_notes([e.provenance for e in found]))
    for e in found:
        where = f"{e.provenance.metric}{f' at {e.provenance.nfe} NFE' if e.provenance.nfe else ''}"
        if e.note:
            notes[f"{where}: {e.note}."] = None
        elif e.low is None and not e.blocks:
            notes[f"{where}: no interval; it takes several blocks of samples."] = None
    return list(notes)
