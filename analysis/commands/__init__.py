"""The verbs of `scaling` that concern tables of runs and laws.

VERBS holds data alone, so that the command line can list the verbs without importing them:
the words of a verb -> (module, function, the line that `scaling --help` prints).
"""

VERBS = {
    "sweep collect": ("analysis.commands.collect", "collect", "Write the results table of a sweep."),
    "fit": ("analysis.commands.fit", "fit", "Fit a scaling law to a table."),
    "forecast": (
        "analysis.commands.forecast",
        "forecast",
        "Forecast a loss from a saved fit; seal and score forecasts.",
    ),
    "backtest": (
        "analysis.commands.backtest",
        "backtest",
        "Forecast the largest runs from the rest, and score it.",
    ),
    "coverage": ("analysis.commands.backtest", "coverage", "Back-test every public table; count what intervals cover."),
    "downstream": ("analysis.commands.downstream", "downstream", "Fit how task accuracy rises with compute."),
    "rates": ("analysis.commands.rates", "rates", "Find the best learning rate of each size, and their law."),
    "curves": ("analysis.commands.curves", "curves", "Fit one-variable laws to many curves and extrapolate them."),
    "isoflop": ("analysis.commands.isoflop", "isoflop", "Compute-optimal sizes by two approaches, with their biases."),
    "design": ("analysis.commands.design", "design", "Propose the next runs for a forecast and a budget."),
    "replicate": ("analysis.commands.replicate", "replicate", "Recompute published numbers from public tables."),
    "report": ("analysis.commands.report", "report", "Draw the figures and write the page of a fitted sweep."),
}

# Names of the last release that scripts may still use, for one release: old verb -> verb, and verb -> {old flag: flag}.
OLD_VERBS: dict[str, str] = {}
OLD_FLAGS: dict[str, dict[str, str]] = {
    "fit": {"--params": "--params-column"},
    "forecast": {"--lock": "--seal"},
    "backtest": {"--params": "--params-column"},
    "downstream": {"--params": "--params-column"},
    "rates": {"--params": "--params-column"},
    "isoflop": {"--params": "--params-column", "--at": "--bias-flops"},
    "design": {"--params": "--params-column"},
}
