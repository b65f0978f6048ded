"""`cmray theory`."""

import json
from pathlib import Path

from cli_run import good, here

FILE = Path(__file__).resolve().parents[2] / "experiments" / "theory.yaml"
SHORT = ("--set", "theory.intervals=[16, 32, 64, 128]", "--set", "theory.nodes=16")


def test_it_prints_the_orders_and_writes_table_and_figure(tmp_path):
    ran = good(here("theory", FILE, *SHORT, "--storage", tmp_path))
    assert "16 of 16 orders are those of the theory" in ran.out
    assert "Theorem 6" in ran.out
    assert "Orders of convergence of consistency distillation and training" in ran.out  # the file's description
    assert sorted(p.name for p in (tmp_path / "theory").iterdir()) == ["orders.csv", "orders.png", "orders.svg"]


def test_an_order_that_is_off_ends_with_1_and_says_which(tmp_path):
    """Two coarse grids: the asymptotic order is not reached yet."""
    ran = here("theory", FILE, "--set", "theory.intervals=[1, 2, 3]", "--json", "--out", tmp_path)
    assert ran.code == 1
    curves = json.loads(ran.out)["curves"]
    assert not all(c["holds"] for c in curves)


def test_bad_files_end_with_2_and_one_line(tmp_path):
    for arguments, message in (
        (("theory", FILE, "--set", "theory.solvers=[hein]"), "did you mean 'heun'"),
        (("theory", tmp_path / "none.yaml"), "none.yaml"),
        (("sweep", FILE, "--dry-run"), "is a theory file, which trains nothing; run: cmray theory"),
    ):
        ran = here(*arguments, "--storage", tmp_path / "st")
        assert ran.code == 2
        assert message in ran.err
        assert len(ran.err.strip().splitlines()) <= 2
        assert not (tmp_path / "st").exists()
