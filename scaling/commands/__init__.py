"""The verbs of `scaling` for one run or one corpus: words -> (module, function, line of `scaling --help`).

The tables hold text only, so that the command line lists the verbs without importing them.
"""

VERBS = {
    "train": ("scaling.commands.train", "train", "Train one run, or resume it."),
    "profile": (
        "scaling.commands.profile",
        "profile",
        "Trace a training step: where its time goes, and what bounds it.",
    ),
    "data prepare": ("scaling.commands.data", "data_prepare", "Write the token shards of a corpus."),
    "data mixture": ("scaling.commands.data", "data_mixture", "Write the token shards of a mixture of corpora."),
    "data vocabulary": ("scaling.commands.data", "data_vocabulary", "Train a SentencePiece tokenizer on a corpus."),
    "data verify": ("scaling.commands.data", "data_verify", "Verify the token shards of a corpus."),
    "data list": ("scaling.commands.data", "data_list", "List the kinds of corpora and the prepared ones."),
    "eval": ("scaling.commands.eval", "evaluate", "Evaluate checkpoints of a run or a sweep on tasks."),
    "generate": ("scaling.commands.generate", "generate", "Generate text with a trained run."),
    "export": ("scaling.commands.export", "export", "Export a run as safetensors, config.json and a numpy script."),
    "cost": ("scaling.commands.cost", "cost", "Print the recipe of a model size or a budget, and its cost."),
    "coord-check": (
        "scaling.commands.coordinate_check",
        "coord_check",
        "Check that activations change alike at every width and depth.",
    ),
    "population": ("scaling.commands.population", "population", "Train runs of one shape together in one program."),
    "track": ("scaling.commands.track", "track", "Copy the metrics of runs to TensorBoard or W&B."),
    "compile": (
        "scaling.commands.compile",
        "compile_for_tpu",
        "Compile the training step for TPUs: memory, time, cost.",
    ),
}

# Names of the last release, which scripts may use for one more: old verb -> verb, and verb -> {old flag: flag}.
OLD_VERBS: dict[str, str] = {"coordinates": "coord-check"}
OLD_FLAGS: dict[str, dict[str, str]] = {"data prepare": {"--road": "--backend"}, "eval": {"--again": "--rerun"}}
