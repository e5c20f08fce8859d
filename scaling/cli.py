"""`scaling VERB ...`: train one run, run a sweep, fit a law, check its forecast. Every verb has --help."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import io
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.markup import escape

from scaling.config import RunConfig, load
from scaling.exits import BAD_INPUT, DIVERGED, UNHEARD
from scaling.record import CONFIG
from scaling.strict import InputError

OF_A_RUN = (["train"], ["profile"])
POSITIONAL = (tyro.conf.PositionalRequiredArgs,)


def base_config(arguments: list[str]) -> RunConfig:
    """What the flags of `train` and `profile` override: the folder's own config, a --file, or the defaults."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    peek.add_argument("--folder", type=Path)
    peek.add_argument("--file", type=Path)
    found, _ = peek.parse_known_args(arguments)
    if found.file:
        return load(found.file)
    if found.folder and (found.folder / CONFIG).exists():
        return load(found.folder / CONFIG)
    return RunConfig()


@dataclass(frozen=True)
class Verb:
    """A function that some module holds, and the line by which --help names it before that module is loaded."""

    words: tuple[str, ...]
    module: str
    function: str
    help: str


VERBS = (
    Verb(("data", "prepare"), "scaling.data_verbs", "data_prepare", "Write the token shards of a corpus, once."),
    Verb(("data", "mixture"), "scaling.data_verbs", "data_mixture", "Write the token shards of corpora at rates."),
    Verb(("data", "vocabulary"), "scaling.data_verbs", "data_vocabulary", "Train a SentencePiece model on a corpus."),
    Verb(("data", "list"), "scaling.data_verbs", "data_list", "List the kinds of corpora and what is prepared."),
    Verb(("sweep", "plan"), "sweeps.plan", "plan", "Show what a sweep costs, and freeze its plan."),
    Verb(("sweep", "run"), "sweeps.run", "run", "Train what is not done yet; again after any interruption."),
    Verb(("sweep", "status"), "sweeps.status", "status", "Show what is done, running, waiting, failed."),
    Verb(("sweep", "manifest"), "sweeps.manifests", "manifest", "YAML for workers on TPU slices; never run here."),
    Verb(("sweep", "collect"), "analysis.collect_verb", "collect", "Write the results table of a sweep."),
    Verb(("rates",), "analysis.rates", "rates", "The best learning rate of each size, from scans, and their law."),
    Verb(("fit",), "analysis.verbs", "fit", "Fit a scaling law to a table."),
    Verb(("curves",), "analysis.curves", "curves", "Fit one-variable laws to many curves and extrapolate."),
    Verb(("forecast",), "analysis.forecast", "forecast", "Forecast a loss from a saved fit, lock it, score it."),
    Verb(("backtest",), "analysis.holdout", "backtest_verb", "Forecast the top of compute from the rest; score it."),
    Verb(
        ("downstream",),
        "analysis.downstream_verb",
        "downstream_verb",
        "Say which tasks rise with compute, by which law.",
    ),
    Verb(("design",), "analysis.design_verb", "design", "Propose the next runs for a forecast and a budget."),
    Verb(("isoflop",), "analysis.verbs", "isoflop", "Compute-optimal sizes by approaches 1 and 2, with their biases."),
    Verb(("coverage",), "analysis.holdout", "coverage", "Back-test every public table; count what bands hold."),
    Verb(("replicate",), "analysis.replicate.verb", "replicate", "Recompute published numbers from public tables."),
    Verb(("report",), "analysis.verbs", "report", "Draw the figures and write the page of a fitted sweep."),
    Verb(("eval",), "scaling.eval_verb", "evaluate", "Measure what the checkpoints of a run or a sweep can do."),
    Verb(("generate",), "scaling.generate_verb", "generate_verb", "Write text with a trained run, as it is made."),
    Verb(("export",), "scaling.export_verb", "export_verb", "Write a run as safetensors, config.json and a run file."),
    Verb(("cost",), "scaling.cost_verb", "cost", "Print the whole recipe of a size or a budget, and what it takes."),
    Verb(("coordinates",), "scaling.coordinates", "coordinates", "Check that activations move alike at every size."),
    Verb(("population",), "scaling.population", "population", "Train run folders of one shape in one program."),
    Verb(("track",), "scaling.track_verb", "track", "Mirror runs into TensorBoard or W&B, beside their files."),
    Verb(("compile",), "scaling.compile_verb", "compile", "Cost a run on TPUs that are not there: memory, time."),
)


def build_app(arguments: list[str], base: RunConfig) -> tyro.extras.SubcommandApp:
    """All verbs; only the module of the one asked for is imported, so that the command line is quick.

    base: what the flags of `train` and `profile` override.
    """
    app = tyro.extras.SubcommandApp()
    groups = {"data": tyro.extras.SubcommandApp(), "sweep": tyro.extras.SubcommandApp()}

    def train(
        config: Annotated[RunConfig, tyro.conf.arg(name="")] = base,
        folder: Path | None = None,
        file: Path | None = None,
        quiet: bool = False,
        json: Path | None = None,
    ) -> int:
        """Train one run. The same command again resumes it, or says that it is done.

        Compiled programs are kept in the user's cache folder for the next run of the same shape; another folder:
        JAX_COMPILATION_CACHE_DIR; not at all: JAX_ENABLE_COMPILATION_CACHE=false.

        Args:
            config: every field of the run.
            folder: the run folder; out/train/<run_id> when not given. Its config.json is the base of the flags.
            file: a config.json to start from instead.
            quiet: no progress bar.
            json: also write the result to this file.
        """
        del file
        return _train(config, folder, quiet, json)

    if arguments[:1] in OF_A_RUN:
        keep_programs()
    app.command(name="train", help="Train one run; again to resume it.")(deferred(train))

    def profile(
        config: Annotated[RunConfig, tyro.conf.arg(name="")] = base,
        folder: Path | None = None,
        file: Path | None = None,
        out: Path = Path("out/profile"),
        steps: int = 20,
        warmup: int = 5,
        json: Path | None = None,
    ) -> None:
        """Trace a run's training step: busy share of the devices, gaps, and what the time goes into.

        Args:
            config: every field of the run.
            folder: a run folder whose config.json is the base of the flags.
            file: a config.json to start from instead.
            out: where the trace is kept, for Perfetto and XProf.
            steps: steps timed, and then traced.
            warmup: steps before that.
            json: also write the same facts to this file.
        """
        del folder, file
        from scaling.profile_verb import profile

        profile(config, out, steps, warmup, json)

    app.command(name="profile", help="Trace a run's step: is it compute-bound, and in what.")(deferred(profile))
    app.command(groups["data"], name="data", help="Corpora: prepare, mixture, vocabulary, list.")
    app.command(groups["sweep"], name="sweep", help="Many runs: plan, run, status, collect.")
    for verb in VERBS:
        *group, name = verb.words
        asked = tuple(arguments[: len(verb.words)]) == verb.words
        compiles = ("analysis", "scaling.population", "scaling.eval_verb", "scaling.generate")
        if asked and verb.module.startswith(compiles):
            keep_programs()
        function = getattr(importlib.import_module(verb.module), verb.function) if asked else lambda: None
        (groups[group[0]] if group else app).command(name=name, help=None if asked else verb.help)(deferred(function))
    return app


def keep_programs() -> None:
    """Compiled programs are kept between commands, in the user's cache folder unless JAX is told of another by
    JAX_COMPILATION_CACHE_DIR; JAX_ENABLE_COMPILATION_CACHE=false turns it off. A law takes seconds to compile and a
    fraction of one to fit, a training step up to minutes. Before JAX is imported. A sweep keeps its own cache, so its
    verbs do not call this."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "scaling-laws" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def _train(config: RunConfig, folder: Path | None, quiet: bool, json: Path | None) -> int:
    import jax

    from scaling.ending import exit_code
    from scaling.record import read_result, write_json
    from scaling.session import stamped
    from scaling.train import train

    if folder is None:
        config = stamped(config)
        folder = Path("out/train") / config.run_id
    try:
        status = train(config, folder, quiet=quiet)
    except InputError:
        raise
    except Exception as error:
        return exit_code(error)
    result = read_result(folder)
    if jax.process_index() == 0 and result is not None:
        loss, bits = result["row"].get("loss"), result["row"].get("bits_per_byte")
        facts = f"loss {loss:.4f} nats/token, {bits:.4f} bits/byte" if status == "done" else result["reason"]
        print(f"{folder}: {status}, {facts}")
        if json:
            write_json(json, {"folder": str(folder), **result})
    return DIVERGED if status == "diverged" else 0


def user_errors() -> tuple[type[Exception], ...]:
    """The exceptions that mean bad input, by the packages loaded so far."""
    results = sys.modules.get("analysis.results")
    return (InputError, *([results.TableError] if results else []))


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a run failed, 2 bad input (one line on stderr), 4 diverged, 12 out of memory,
    74 another process of the run is gone, 75 stopped and saved, 141 nobody reads the output (scaling/exits.py)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        base = base_config(arguments) if arguments[:1] in OF_A_RUN else RunConfig()
        code = parse(build_app(arguments, base), arguments)()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = UNHEARD
    except Exception as error:
        if not isinstance(error, user_errors()):
            raise
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        code = getattr(error, "code", BAD_INPUT)
    sys.exit(code if isinstance(code, int) else 0)


def deferred(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """The same signature, but the call is returned instead of made: parsing ends before a verb begins."""

    @functools.wraps(function)
    def later(*arguments: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(function, *arguments, **options)

    return later


def parse(app: tyro.extras.SubcommandApp, arguments: list[str]) -> Callable[[], Any]:
    """The verb with its options, ready to run. What tyro says of wrong flags in a box of many lines becomes an
    InputError of one."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return app.cli(prog="scaling", description=__doc__, args=arguments, config=POSITIONAL)
    except SystemExit as end:
        if end.code != 2:
            raise
        text = re.sub(r"[\u2500-\u257f]+|For full helptext.*", " ", said.getvalue(), flags=re.DOTALL)
        raise InputError(" ".join(text.split())) from None


if __name__ == "__main__":
    main()
