"""The verbs of `scaling` that concern one run or one corpus.

VERBS holds data alone, so that the command line can list the verbs without importing them:
the words of a verb -> (module, function, the line that `scaling --help` prints).
"""

VERBS = {
    "train": ("scaling.commands.train", "train", "Train one run, or resume it."),
    "profile": ("scaling.commands.profile", "profile", "Trace a training step: is it compute-bound, and in what?"),
    "data prepare": ("scaling.commands.data", "data_prepare", "Write the token shards of a corpus, once."),
    "data mixture": ("scaling.commands.data", "data_mixture", "Write the token shards of several corpora at rates."),
    "data vocabulary": ("scaling.commands.data", "data_vocabulary", "Train a SentencePiece tokenizer on a corpus."),
    "data list": ("scaling.commands.data", "data_list", "List the kinds of corpora, and those that are prepared."),
    "eval": ("scaling.commands.eval", "evaluate", "Measure what the checkpoints of a run or a sweep can do."),
    "generate": ("scaling.commands.generate", "generate", "Write text with a trained run, token by token."),
    "export": ("scaling.commands.export", "export", "Write a run as safetensors, config.json and a numpy script."),
    "cost": ("scaling.commands.cost", "cost", "Print the recipe of a model size or a budget, and its cost."),
    "coord-check": ("scaling.commands.coordinate_check", "coord_check", "Check activation sizes over width and depth."),
    "population": ("scaling.commands.population", "population", "Train run folders of one shape in one program."),
    "track": ("scaling.commands.track", "track", "Mirror runs into TensorBoard or W&B, beside their files."),
    "compile": (
        "scaling.commands.compile",
        "compile_for_tpu",
        "Compile the step for a TPU topology: memory, time, cost.",
    ),
}

# Names of the last release that scripts may still use, for one release: old verb -> verb, and verb -> {old flag: flag}.
OLD_VERBS: dict[str, str] = {"coordinates": "coord-check"}
OLD_FLAGS: dict[str, dict[str, str]] = {"data prepare": {"--road": "--backend"}, "eval": {"--again": "--rerun"}}
