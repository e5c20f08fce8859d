"""`scaling VERB ...`: train one run, run a sweep, fit a law, check its forecast. Every verb has --help.

The verbs are listed in the three tables `VERBS` of scaling/commands, sweeps/commands and analysis/commands. Only the
module of the verb that was typed is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import importlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tyro
from rich.console import Console
from rich.markup import escape

import analysis.commands
import scaling.commands
import sweeps.commands
from analysis.errors import TableError
from scaling.errors import InputError
from scaling.exit_codes import BAD_INPUT, INTERRUPTED, OUTPUT_CLOSED

DESCRIPTION = "Train transformers over model and data sizes, fit scaling laws, and check forecasts."
GROUPS = {
    "data": "Corpora: prepare, mixture, vocabulary, list.",
    "sweep": "Many runs: plan, run, status, collect, manifest.",
}
VERBS = scaling.commands.VERBS | sweeps.commands.VERBS | analysis.commands.VERBS
OLD_VERBS = scaling.commands.OLD_VERBS | sweeps.commands.OLD_VERBS | analysis.commands.OLD_VERBS
OLD_FLAGS = scaling.commands.OLD_FLAGS | sweeps.commands.OLD_FLAGS | analysis.commands.OLD_FLAGS


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit codes: 0 done, 1 a run failed, 2 bad input (one line on stderr), 4 diverged, 12 out of memory,
    74 another process of the run is gone, 75 stopped and saved, 141 nobody reads the output (scaling/exit_codes.py)."""
    arguments = with_current_names(sys.argv[1:] if arguments is None else arguments)
    try:
        code = parse(build_app(arguments), arguments)()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OUTPUT_CLOSED
    except (InputError, TableError) as error:
        Console(stderr=True, soft_wrap=True).print(f"[red]error:[/] {escape(str(error))}", highlight=False)
        code = getattr(error, "code", BAD_INPUT)
    sys.exit(code if isinstance(code, int) else 0)


def with_current_names(arguments: list[str]) -> list[str]:
    """The arguments with verbs and flags of the last release under their names of today, so that scripts go on."""
    for old, new in OLD_VERBS.items():
        if arguments[: len(old.split())] == old.split():
            arguments = [*new.split(), *arguments[len(old.split()) :]]
    for verb, flags in OLD_FLAGS.items():
        if arguments[: len(verb.split())] == verb.split():
            names = [argument.partition("=") for argument in arguments]
            arguments = [flags.get(name, name) + equals + value for name, equals, value in names]
    return arguments


def build_app(arguments: list[str]) -> tyro.extras.SubcommandApp:
    """A parser of all verbs. The verb that `arguments` begin with is imported; the others are names and help lines."""
    app = tyro.extras.SubcommandApp()
    groups = {name: tyro.extras.SubcommandApp() for name in GROUPS}
    for name, text in GROUPS.items():
        app.command(groups[name], name=name, help=text)
    for words, (module, function, text) in VERBS.items():
        *group, name = words.split()
        parent = groups[group[0]] if group else app
        if arguments[: len(group) + 1] == [*group, name]:
            parent.command(name=name)(deferred(import_verb(module, function, arguments)))
        else:
            parent.command(name=name, help=text)(deferred(lambda: None))
    return app


def import_verb(module: str, function: str, arguments: list[str]) -> Callable[..., Any]:
    """The function of a verb. Where it takes a `config`, the default is the config that `arguments` name."""
    if not module.startswith("sweeps."):  # the runner of a sweep gives its processes a cache of the sweep's own
        use_compilation_cache()
    verb = getattr(importlib.import_module(module), function)
    signature = inspect.signature(verb, eval_str=True)
    config = signature.parameters.get("config")
    if config is None or not dataclasses.is_dataclass(config.default):  # a flag of that name, or none
        return verb
    config = config.replace(default=base_config(arguments))
    return with_signature(verb, signature.replace(parameters=[*(signature.parameters | {"config": config}).values()]))


def base_config(arguments: list[str]) -> Any:
    """The RunConfig that flags override: that of --file, else the one in --folder, else the defaults."""
    from scaling.config.run_config import RunConfig, load_config
    from scaling.record.run_folder import CONFIG

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--file", type=Path)
    flags, _ = parser.parse_known_args(arguments)
    if flags.file:
        return load_config(flags.file)
    if flags.folder and (flags.folder / CONFIG).exists():
        return load_config(flags.folder / CONFIG)
    return RunConfig()


def use_compilation_cache() -> None:
    """Keeps compiled programs between commands, in the user's cache folder. Call it before JAX is imported.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps none. A law takes seconds
    to compile and a fraction of one to fit; a training step takes up to minutes.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "scaling-laws" / "xla"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """The same function, with the parameters and defaults of another signature: tyro makes its flags of that."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        return function(*bound.args, **bound.kwargs)

    call.__signature__ = signature  # pyrefly: ignore[missing-attribute]
    return call


def deferred(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """A function of the same signature that returns the call instead of making it: parsing ends before a verb
    begins."""

    @functools.wraps(function)
    def later(*arguments: Any, **options: Any) -> Callable[[], Any]:
        return functools.partial(function, *arguments, **options)

    return later


def parse(app: tyro.extras.SubcommandApp, arguments: list[str]) -> Callable[[], Any]:
    """The call that the arguments ask for. tyro explains wrong flags in a box of many lines on stderr; this raises an
    InputError of one line in its place."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return app.cli(
                prog="scaling", description=DESCRIPTION, args=arguments, config=(tyro.conf.PositionalRequiredArgs,)
            )
    except SystemExit as end:
        if end.code != BAD_INPUT:
            raise
        # Without the box's lines (U+2500 to U+257F) and its pointer to --help.
        text = re.sub(r"[\u2500-\u257f]+|For full helptext.*", " ", errors.getvalue(), flags=re.DOTALL)
        raise InputError(" ".join(text.split())) from None


if __name__ == "__main__":
    main()
