"""F3: searches for sampling times as ask()/tell(); they choose what to evaluate next and run nothing themselves."""

from cmray.search.section import EXHAUSTIVE_LIMIT, ExhaustiveSearch, SectionSearch
from cmray.search.ternary import GreedySearch, TernarySearch

__all__ = ["EXHAUSTIVE_LIMIT", "ExhaustiveSearch", "GreedySearch", "SectionSearch", "TernarySearch"]
