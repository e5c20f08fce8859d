"""Laws fitted to tables of runs. Imports neither flax nor training code. See analysis.api.

Names are looked up when first asked for, so that a module of the package can be imported without JAX and all the laws.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from analysis.api import fit, forecast, frontier, load, needed, plot
    from analysis.downstream.decisions import decision_accuracy
    from analysis.downstream.study import studies, study
    from analysis.tables.checkpoints import evaluations
    from analysis.tables.metrics import metrics

__all__ = [
    "decision_accuracy",
    "evaluations",
    "fit",
    "forecast",
    "frontier",
    "load",
    "metrics",
    "needed",
    "plot",
    "studies",
    "study",
]


class _Package(ModuleType):
    """`fit` and `forecast` are functions here, whichever of the modules of these names is imported first: Python would
    put the module in their place."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "metrics":
            from analysis.tables.metrics import metrics as found
        elif name == "evaluations":
            from analysis.tables.checkpoints import evaluations as found
        elif name == "decision_accuracy":
            from analysis.downstream.decisions import decision_accuracy as found
        elif name in ("studies", "study"):
            from analysis.downstream import study as downstream

            found = getattr(downstream, name)
        elif name in __all__:
            from analysis import api

            found = getattr(api, name)
        else:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        super().__setattr__(name, found)
        return found

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
