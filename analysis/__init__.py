"""Laws fitted to tables of runs: what a notebook imports, as in `from analysis import load, fit, forecast, plot`.

A name is imported when it is first used, so that a module of the package can be imported without JAX and the laws. The
package imports neither flax nor any training code.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.api import compute_to_reach, fit, forecast, frontier, load, plot
    from analysis.downstream.decisions import decision_accuracy
    from analysis.downstream.study import studies, study
    from analysis.tables.checkpoints import load_evaluations
    from analysis.tables.metrics import load_metrics

__all__ = [
    "compute_to_reach",
    "decision_accuracy",
    "fit",
    "forecast",
    "frontier",
    "load",
    "load_evaluations",
    "load_metrics",
    "plot",
    "studies",
    "study",
]

_MODULES = {
    "decision_accuracy": "analysis.downstream.decisions",
    "load_evaluations": "analysis.tables.checkpoints",
    "load_metrics": "analysis.tables.metrics",
    "studies": "analysis.downstream.study",
    "study": "analysis.downstream.study",
}
"""The module of each name of __all__ that is not in analysis.api."""


def __getattr__(name: str) -> Any:
    """Imports a name of __all__ when it is first used (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES.get(name, "analysis.api")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
