"""Writes the references under docs/ that are made of the code: cli.md, configuration.md and json.md.

    python analysis/reference.py            # writes them
    python analysis/reference.py --check    # names those that are not what it would write, exit code 1

Nothing in them depends on the terminal, the machine or versions. A test runs --check.
"""

from __future__ import annotations

import sys
from pathlib import Path

import reference_cli
import reference_config
import reference_json

DOCS = Path(__file__).resolve().parents[1] / "docs"


def pages() -> dict[str, str]:
    """File name under docs/ -> text."""
    return {
        "cli.md": reference_cli.page(),
        "configuration.md": reference_config.page(),
        "json.md": reference_json.page(),
    }


def main(arguments: list[str]) -> int:
    stale = {
        name: text
        for name, text in pages().items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text(encoding="utf-8") != text
    }
    for name, text in stale.items():
        if "--check" in arguments:
            print(f"docs/{name} is not what the code says: run python analysis/reference.py")
        else:
            (DOCS / name).write_text(text, encoding="utf-8")
            print(f"written: docs/{name}")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
