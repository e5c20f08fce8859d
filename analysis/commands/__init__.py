"""The verbs of `scaling` that read tables of runs and fit laws to them.

VERBS is data only, so that the command line can list the verbs without importing their modules:
words of the verb -> (module, function, the line that `scaling --help` prints).
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
        "Forecast the largest runs from the smaller ones, and score the forecasts.",
    ),
    "coverage": (
        "analysis.commands.backtest",
        "coverage",
        "Back-test every public table, and count what the intervals cover.",
    ),
    "downstream": (
        "analysis.commands.downstream",
        "downstream",
        "Fit how the accuracy of downstream tasks rises with compute.",
    ),
    "rates": (
        "analysis.commands.rates",
        "rates",
        "Find the best learning rate of each model size, and the law through them.",
    ),
    "curves": (
        "analysis.commands.curves",
        "curves",
        "Fit one-variable laws to many learning curves, and extrapolate them.",
    ),
    "isoflop": (
        "analysis.commands.isoflop",
        "isoflop",
        "Fit compute-optimal sizes by two approaches, with the bias of each.",
    ),
    "design": (
        "analysis.commands.design",
        "design",
        "Propose the runs to train next for a better forecast within a budget.",
    ),
    "replicate": ("analysis.commands.replicate", "replicate", "Recompute published numbers from public tables."),
    "report": ("analysis.commands.report", "report", "Draw the figures of a fitted sweep and write its page."),
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
