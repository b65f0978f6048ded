"""Tables for LaTeX."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from cmray.report.tables import text_cells

_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"$\dagger$",
    "·": r"$\cdot$",
    "–": "--",
    "\0": r"\textbf{",
    "\1": "}",
}


def latex(text: str) -> str:
    """`text` so that LaTeX prints it."""
    return "".join(_LATEX.get(char, char) for char in text)


def to_latex(frame: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """A booktabs tabular (needs \\usepackage{booktabs}), the best value of each column bold, `notes` below it."""
    header, body, numeric = text_cells(frame, bold="\0{}\1", intervals=True)
    lines = [
        f"\\begin{{tabular}}{{{''.join('r' if number else 'l' for number in numeric)}}}",
        "\\toprule",
        " & ".join(latex(cell) for cell in header) + r" \\",
        "\\midrule",
        *(" & ".join(latex(cell) for cell in row) + r" \\" for row in body),
        "\\bottomrule",
        "\\end{tabular}",
        *(f"\\par\\footnotesize {latex(note)}" for note in notes),
    ]
    return "\n".join(lines) + "\n"
