"""The verbs `scaling sweep ...`, but for `collect`, which belongs to the results tables of `analysis`.

VERBS holds data alone, so that the command line can list the verbs without importing them:
the words of a verb -> (module, function, the line that `scaling sweep --help` prints).
"""

VERBS = {
    "sweep plan": ("sweeps.commands.plan", "plan", "Show what a sweep costs, and freeze its plan."),
    "sweep run": (
        "sweeps.commands.run",
        "run",
        "Train the cells that are not done; run it again after an interruption.",
    ),
    "sweep status": ("sweeps.commands.status", "status", "Show which cells are done, running, waiting or failed."),
    "sweep manifest": ("sweeps.clusters.manifests", "manifest", "Print YAML for workers on TPU slices."),
}

# Names of the last release that scripts may still use, for one release: old verb -> verb, and verb -> {old flag: flag}.
OLD_VERBS: dict[str, str] = {}
OLD_FLAGS: dict[str, dict[str, str]] = {}
