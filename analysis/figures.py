"""Writes the reports of several experiments, or of all in a storage folder, each into a folder of its own.

    python analysis/figures.py fig3 fig4 --out figures

Everything in them is made by cmray.report; `cmray report` does the same for one experiment.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from cmray.core.errors import CmrayError
from cmray.core.storage import default_storage
from cmray.report.build import write_report
from cmray.report.load import load_experiment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", help="names; all in the storage folder when none is given")
    parser.add_argument("--storage", type=Path, default=default_storage(), help="default CMRAY_STORAGE or ./cmray-data")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to write; default ./figures")
    arguments = parser.parse_args()
    names = arguments.experiments or sorted(path.parent.name for path in arguments.storage.glob("*/experiment.json"))
    if not names:
        parser.error(f"no experiment in {arguments.storage}")
    try:
        records = [load_experiment(arguments.storage, name) for name in names]
    except CmrayError as error:
        parser.error(str(error))
    for record in records:
        for path in write_report(record, arguments.out / record.name).values():
            print(path)


if __name__ == "__main__":
    main()
