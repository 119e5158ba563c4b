"""The self-test: every sampler on data whose denoiser is known in closed form.

Orders of convergence, final errors, variances at every step, the distribution of whole runs, and a model of each
prediction type through `DiffusionModel`. docs/selftest.md explains each number and its bound.
"""

from langevin.evaluation.selftest.report import Row, SelftestReport
from langevin.evaluation.selftest.run import run_selftest

__all__ = ["Row", "SelftestReport", "run_selftest"]
