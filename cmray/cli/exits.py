"""How a command ends: the exit codes, and what each says to a script."""

from __future__ import annotations

DONE, FAILED, BAD_INPUT, OUT_OF_TIME, INTERRUPTED = 0, 1, 2, 3, 130

MEANINGS = {
    DONE: "Done. Also when nothing was left to do, when Ctrl-C leaves a job that is followed (the job goes on), and "
    "when whoever read the output stopped reading.",
    FAILED: "It ran, and something in it failed: a trial of `cmray sweep` or `cmray train`, an order of convergence of "
    "`cmray theory`, a thing that `cmray doctor` finds missing, a job that `cmray jobs stop` could not end. "
    "A traceback is a bug of cmray; please report it.",
    BAD_INPUT: "Bad input: one line says what was found and what is allowed. Nothing was started, or it stopped where "
    "it met the input. `cmray` without a command ends so too, with its help.",
    OUT_OF_TIME: "`--max-hours` was over before the sweep was; the same command goes on.",
    INTERRUPTED: "Ctrl-C or SIGTERM; the same command goes on.",
}
