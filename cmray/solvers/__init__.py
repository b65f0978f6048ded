"""F1: one step of the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma, each solver in its own file."""

from cmray.solvers.base import SolverConfig, SolverField, solvers

__all__ = ["SolverConfig", "SolverField", "solvers"]
