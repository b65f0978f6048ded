"""docs/json.md: what `--json` of each command prints, from the types that its writers share."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Annotated, Any, NotRequired, get_args, get_origin

from pydantic import BaseModel
from reference_text import MADE, code, table, words
from typing_extensions import get_type_hints, is_typeddict

from cmray.cli.documents import DOCUMENTS

INTRODUCTION = f"""# What `--json` prints

{MADE}

With `--json` a command prints one JSON document on standard output and nothing else there; progress, warnings and
errors go to standard error. A command that is refused prints no document: look at the [exit code](cli.md#exit-codes)
first. `cmray ui` and `cmray studio` have no `--json`.

```bash
cmray sweep experiments/quickstart.yaml --dry-run --json > plan.json
python -c "import json; print(json.load(open('plan.json'))['seconds'])"
```

- Fields are stable: none is renamed or removed, and none changes its type, without a line in the changelog under a new
  minor version. New fields may come, so read by name.
- Times of day are seconds since the epoch, UTC. Noise levels descend. Digests are SHA-256 in hex.
- A number that is not finite, such as the loss of a model that diverged, is written as Python writes it: `NaN`,
  `Infinity`.
- `cmray sweep --address http://...` prints what `cmray jobs submit` does.
"""


def _is_shape(kind: Any) -> bool:
    return isinstance(kind, type) and (is_typeddict(kind) or issubclass(kind, BaseModel))


def shapes(kind: Any) -> Iterator[Any]:
    """The documents and records that a type names."""
    if _is_shape(kind):
        yield kind
    for part in get_args(kind):
        yield from shapes(part)


def fields(shape: Any) -> Iterator[tuple[str, Any, str, bool]]:
    """(name, type, description, whether it may be absent)."""
    if issubclass(shape, BaseModel):
        own = list(shape.__annotations__)  # a document's own fields before those of the record that it extends
        known = shape.model_fields
        for name in [*(n for n in own if n in known), *(n for n in known if n not in own)]:
            yield name, known[name].annotation, known[name].description or "", False
        return
    for name, hint in get_type_hints(shape, include_extras=True).items():
        optional = get_origin(hint) is NotRequired
        inner = get_args(hint)[0] if optional else hint
        assert get_origin(inner) is Annotated, f"{shape.__name__}.{name} has no description"
        kind, text = get_args(inner)
        yield name, kind, text, optional


def described(shape: Any) -> str:
    """Its first sentence and the table of its fields."""
    rows = [
        [code(name), words(kind) + (", may be absent" if optional else ""), text]
        for name, kind, text, optional in fields(shape)
    ]
    return f"{first_line(shape)}\n\n{table(('field', 'type', ''), rows)}"


def first_line(shape: Any) -> str:
    return inspect.cleandoc(shape.__doc__).split("\n\n")[0].replace("\n", " ")


def page() -> str:
    parts = [INTRODUCTION.strip()]
    used: dict[Any, None] = {}
    told: dict[Any, str] = {}
    for line, kind in DOCUMENTS.items():
        (shape,) = shapes(kind)
        text = "A list, each of it:" if get_origin(kind) is list else "One object:"
        if shape in told:
            parts.append(f"## {line}\n\nAs [{told[shape]}](#{told[shape].replace(' ', '-')}).")
            continue
        told[shape] = line
        parts.append(f"## {line}\n\n{text} {described(shape)[:1].lower()}{described(shape)[1:]}")
        used |= dict.fromkeys(inner for _, k, _, _ in fields(shape) for inner in shapes(k))
    parts.append("## Records\n\nWhat stands inside of these documents.")
    done: set[Any] = set()
    while rest := [shape for shape in used if shape not in done]:
        for shape in rest:
            done.add(shape)
            parts.append(f"### {shape.__name__}\n\n{described(shape)}")
            used |= dict.fromkeys(inner for _, k, _, _ in fields(shape) for inner in shapes(k))
    return "\n\n".join(parts) + "\n"
