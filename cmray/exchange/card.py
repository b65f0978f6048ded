"""The README.md of an exported model: what it is, what it learned from, what was measured of it, its licence."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cmray.core.version import __version__
from cmray.exchange.base import Exported
from cmray.tracking.records import Evaluation

KINDS = {
    "consistency": "a consistency model (Song et al., ICML 2023): one network evaluation turns noise into an image",
    "denoiser": "a denoiser, sampled with an ODE solver; it can teach consistency models",
    "few-step": "a progressively distilled denoiser, right only on the few steps it was distilled to",
}


def model_card(exported: Exported, use: str, library: str) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        use: lines of Python that sample from the folder, called FOLDER.
        library: what reads the folder.
    """
    front: dict[str, Any] = {"library_name": library, "tags": _tags(exported)}
    if exported.licence:
        front = {"license": exported.licence, **front}
    front["cmray_objective"] = exported.run.objective.model_dump(mode="json", exclude_none=True)
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {exported.name}",
        f"{_upper(KINDS[exported.run.objective.kind])}. Exported by cmray {__version__}.",
        "## Model\n\n" + _table(("what", "value"), _model(exported)),
        "## Data\n\n" + _data(exported),
        "## Results\n\n" + _results(exported),
        "## Licence\n\n" + _licence(exported),
        f"## Use\n\n```python\n{use}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def card_fields(path: Path) -> dict[str, Any]:
    """The front matter of a README.md; empty where there is none that can be read."""
    try:
        text = path.read_text()
        _, front, _ = text.split("---\n", 2) if text.startswith("---\n") else ("", "", "")
        value = yaml.safe_load(front)
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}


def _upper(text: str) -> str:
    """With a capital at its beginning, and all else as it is."""
    return text[:1].upper() + text[1:]


def _tags(exported: Exported) -> list[str]:
    conditional = "class-conditional" if exported.model.num_classes else "unconditional"
    kind = {"consistency": "consistency-model", "denoiser": "diffusion-model", "few-step": "progressive-distillation"}
    return [kind[exported.run.objective.kind], f"{conditional}-image-generation", "cmray"]


def _model(exported: Exported) -> list[tuple[str, str]]:
    run, model, facts = exported.run, exported.model, exported.facts
    c, h, w = model.shape
    rows = [
        ("network", f"{run.net.name}, {sum(p.numel() for p in model.net.parameters()):,} parameters"),
        ("images", f"{h}x{w} pixels, {c} channel{'s' * (c > 1)}, values in [-1, 1]"),
        ("classes", str(model.num_classes) if model.num_classes else "none"),
        ("noise levels", f"sigma {run.noise.sigma_min} to {run.noise.sigma_max}, rho {run.noise.rho}"),
        ("sigma_data", str(run.noise.sigma_data)),
        ("preconditioning", run.objective.precond),
        ("weights", f"{model.weights}, SHA-256 of the checkpoint's file {model.weights_sha256}"),
    ]
    origin = facts.origin
    if origin is None or origin.trained_here:
        rows += [
            ("objective", run.objective.label),
            ("training", f"{facts.step:,} steps of {run.train.batch_size}, {facts.nimg:,} images seen"),
            ("seed", str(run.seed)),
        ]
        if run.teacher is not None and run.teacher.identity:
            rows.append(("teacher", f"content hash {run.teacher.identity}"))
    else:
        rows.append(("objective", f"{run.objective.name}; not trained with cmray, so its options are not known"))
    if origin is None:
        return rows
    return [
        *rows,
        ("imported from", f"{origin.file} ({origin.format}), SHA-256 {origin.sha256}"),
        *([("note", origin.note)] if origin.note else []),
    ]


def _data(exported: Exported) -> str:
    data = exported.run.data
    name = data.name or data.dataset or Path(data.path or "").name
    origin = exported.facts.origin
    if origin is not None and not origin.data_known:
        return "cmray did not train it, and nobody said what it was trained on."
    if origin is not None and not origin.trained_here:
        return f"Given at the import as `{name}`; cmray did not train it and has not seen what it was trained on."
    digest = f", content SHA-256 {data.digest}" if data.digest else ""
    changes = [text for on, text in ((data.flip, "random flips"), (data.dequantize, "dequantisation")) if on]
    return f"`{name}`{digest}{', with ' + ' and '.join(changes) if changes else ''}."


def _results(exported: Exported) -> str:
    own = [e for e in exported.evaluations if e.provenance.weights_sha256 == exported.model.weights_sha256]
    if not own:
        return "Nothing was measured of these weights with cmray."
    notes = [
        "Measured with cmray. Values are comparable only where metric, extractor, number of samples and reference are "
        "the same; a Fréchet distance is an FID only in Inception's features of photographs.",
    ]
    if exported.run.objective.features:
        notes.append(
            f"The model was trained with a distance in the features of `{exported.run.objective.features}`, which "
            f"favours it in measures that use the same or a related network."
        )
    head = ("metric", "value", "95% interval", "NFE", "noise levels", "samples", "first seed", "reference", "extractor")
    ordered = sorted(own, key=lambda e: (e.provenance.metric, e.provenance.nfe, e.time))
    return "\n\n".join([*notes, _table(head, [_row(e) for e in ordered])])


def _row(e: Evaluation) -> tuple[str, ...]:
    p = e.provenance
    times = ", ".join(f"{t:.4g}" for t in p.times[:4]) + (", …" if len(p.times) > 4 else "")
    return (
        p.metric,
        f"{e.value:.4g}",
        "" if e.low is None or e.high is None else f"{e.low:.4g} to {e.high:.4g}",
        f"{p.nfe} ({p.sampler})",
        times + (" (searched)" if p.searched else ""),
        f"{p.seed_blocks} x {p.n:,}" if p.seed_blocks > 1 else f"{p.n:,}",
        str(p.seed_first),
        f"{p.dataset}/{p.split} {p.reference_sha256[:8]}" if p.reference_sha256 else "none",
        f"{p.extractor} {p.extractor_sha256[:8]}",
    )


def _licence(exported: Exported) -> str:
    if exported.licence:
        return f"The licence field says `{exported.licence}`. It was given at the export or the import, not checked."
    return "No licence was given. Say one before you share these weights: `cmray export ... --licence NAME`."


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
