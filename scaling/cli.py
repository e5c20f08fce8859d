"""The command line: `scaling VERB ...` trains a run, runs a sweep, fits a law or checks a forecast.

The verbs stand in the tables `VERBS` of scaling/commands, sweeps/commands and analysis/commands. Only the module of the
verb that was typed is imported, so that `scaling --help` loads no JAX.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import functools
import importlib
import inspect
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scaling.exit_codes import BAD_INPUT, INTERRUPTED, OUTPUT_CLOSED


def end_quietly(number: int, frame: object) -> None:
    """Ends the process at once: ctrl-C while modules are imported, where KeyboardInterrupt leaves a traceback."""
    os._exit(INTERRUPTED)


is_program = __name__ == "__main__" or Path("".join(sys.argv[:1])).stem == "scaling"
if is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, end_quietly)  # until `main` calls the verb

import tyro

import analysis.commands
import scaling.commands
import sweeps.commands
from analysis.errors import TableError
from scaling.config.fields import check_seed
from scaling.errors import InputError, as_input_error
from scaling.files import refuse_url, user_cache_folder
from scaling.quantities import parse_count, parse_quantity
from scaling.terminal import labelled, make_console
from scaling.type_checks import describe_value

DESCRIPTION = "Train transformers over model and data sizes, fit scaling laws, and check forecasts."
GROUPS = {
    "data": "Corpora: prepare, mixture, vocabulary, list.",
    "sweep": "Many runs: plan, run, status, collect, manifest.",
}
VERBS = scaling.commands.VERBS | sweeps.commands.VERBS | analysis.commands.VERBS
OLD_VERBS = scaling.commands.OLD_VERBS | sweeps.commands.OLD_VERBS | analysis.commands.OLD_VERBS
PATH_TEXTS = ("--directory", "--vocabulary")
"""Flags of paths whose type is text."""
PATH_ERRORS = frozenset({errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EROFS, errno.ELOOP})
"""Errors of the system that say that a path is wrong, which is one that the user gave."""
OLD_FLAGS = scaling.commands.OLD_FLAGS | sweeps.commands.OLD_FLAGS | analysis.commands.OLD_FLAGS


def main(arguments: list[str] | None = None) -> None:
    """Runs the verb that the arguments name (by default those of the process) and exits with a code of
    scaling/exit_codes.py. Bad input is one line on stderr and exit code 2."""
    arguments = with_current_names(sys.argv[1:] if arguments is None else arguments)
    try:
        call = parse(build_app(arguments), arguments)
        if signal.getsignal(signal.SIGINT) is end_quietly:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        code = call()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output again as it ends: to nowhere, so that it raises no second error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = OUTPUT_CLOSED
    except (InputError, TableError) as error:
        code = print_error(error)
    except OSError as error:
        if (refusal := as_input_error(error)) is None:
            if error.errno not in PATH_ERRORS or error.filename is None:
                raise
            path = describe_value(os.fspath(error.filename))
            refusal = InputError(f"{path}: {error.strerror}: must be a path that can be used; change it")
        code = print_error(refusal)
    sys.exit(code if isinstance(code, int) else 0)


def print_error(error: InputError | TableError) -> int:
    """Prints an error as one line on stderr. Returns its exit code."""
    make_console(stderr=True, soft_wrap=True).print(labelled("error:", "red", error))
    return getattr(error, "code", BAD_INPUT)


def with_current_names(arguments: list[str]) -> list[str]:
    """The arguments with verbs and flags of the last release replaced by their present names."""
    for old, new in OLD_VERBS.items():
        if arguments[: len(old.split())] == old.split():
            arguments = [*new.split(), *arguments[len(old.split()) :]]
    for verb, flags in OLD_FLAGS.items():
        if arguments[: len(verb.split())] == verb.split():
            names = [argument.partition("=") for argument in arguments]
            arguments = [flags.get(name, name) + equals + value for name, equals, value in names]
    return arguments


def build_app(arguments: list[str]) -> tyro.extras.SubcommandApp:
    """A parser of all verbs. The verb that `arguments` begin with is imported; of the others it has the name and the
    help line only."""
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
    """Imports the function of a verb. Where it takes the config of a run, the default is the one `arguments` name."""
    if not module.startswith("sweeps."):  # a sweep gives its processes a cache in its own folder
        use_compilation_cache()
    verb = getattr(importlib.import_module(module), function)
    signature = inspect.signature(verb, eval_str=True)
    config = signature.parameters.get("config")
    if config is None or not dataclasses.is_dataclass(config.default):  # there is none, or it is an ordinary flag
        return verb
    config = config.replace(default=base_config(arguments))
    return with_signature(verb, signature.replace(parameters=[*(signature.parameters | {"config": config}).values()]))


def base_config(arguments: list[str]) -> Any:
    """The RunConfig that flags change: the file --file, else the config.json in --folder, else the defaults."""
    from scaling.config.run_config import RunConfig, load_config
    from scaling.record.run_folder import CONFIG, read_config

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--file", type=Path)
    flags, _ = parser.parse_known_args(arguments)
    check_argument("--folder", flags.folder)
    check_argument("--file", flags.file)
    if flags.file:
        return load_config(flags.file)
    if flags.folder and (flags.folder / CONFIG).exists():
        return read_config(flags.folder)
    return RunConfig()


def use_compilation_cache() -> None:
    """Keeps compiled programs in the user's cache folder for later commands. Call it before JAX is imported.

    JAX_COMPILATION_CACHE_DIR names another folder; JAX_ENABLE_COMPILATION_CACHE=false keeps none. A law takes seconds
    to compile and a fraction of a second to fit; a training step takes up to minutes to compile. Where the user has no
    home folder, or one that cannot be written, nothing is kept.
    """
    cache = user_cache_folder()
    if cache is not None:
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
    if cache is not None and os.access(cache, os.W_OK):
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache / "xla"))
    else:
        # Matplotlib keeps its fonts there too, and would warn at each command that it makes a temporary folder.
        logging.getLogger("matplotlib").setLevel(logging.ERROR)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def with_signature(function: Callable[..., Any], signature: inspect.Signature) -> Callable[..., Any]:
    """The same function with another signature, from which tyro makes the flags."""

    @functools.wraps(function)
    def call(*arguments: Any, **options: Any) -> Any:
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        return function(*bound.args, **bound.kwargs)

    call.__signature__ = signature  # pyrefly: ignore[missing-attribute]
    return call


def deferred(function: Callable[..., Any]) -> Callable[..., Callable[[], Any]]:
    """A function of the same signature that returns the call instead of making it, so that an error of the parser is
    told apart from one of the verb."""

    @functools.wraps(function)
    def later(*arguments: Any, **options: Any) -> Callable[[], Any]:
        def call() -> Any:
            for name, value in inspect.signature(function).bind(*arguments, **options).arguments.items():
                check_argument(f"--{name.replace('_', '-')}", value)
            return function(*arguments, **options)

        return call

    return later


def check_argument(flag: str, value: Any) -> None:
    """Raises InputError where an argument of a verb is a path that is a URL, or a seed too large for a key."""
    if isinstance(value, (tuple, list)):
        for element in value:
            check_argument(flag, element)
    elif isinstance(value, Path) or flag in PATH_TEXTS:
        refuse_url(flag, value)
    elif flag == "--seed":
        check_seed(flag, value)


def parse(app: tyro.extras.SubcommandApp, arguments: list[str]) -> Callable[[], Any]:
    """Parses the arguments and returns the call of the verb. Where tyro would print a box of many lines about wrong
    flags, raises InputError with its text in one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return app.cli(
                prog="scaling",
                description=DESCRIPTION,
                args=arguments,
                config=(tyro.conf.PositionalRequiredArgs,),
                registry=registry_of_numbers(),
            )
    except SystemExit as end:
        if end.code != BAD_INPUT:
            raise
        # Drop the lines that draw the box (U+2500 to U+257F) and the pointer to --help.
        text = re.sub(r"[\u2500-\u257f]+|For full helptext.*", " ", errors.getvalue(), flags=re.DOTALL)
        text = " ".join(text.split())
        # Of a wrong number, tyro says which types it tried: only the flag, its value and what would be right are kept.
        number = re.search(r"Error parsing (\S+):(?:.*>:)? (.*?): (must be .*?) Argument helptext", text)
        raise InputError("{} {}: {}".format(*number.groups()) if number else text) from None


def registry_of_numbers() -> tyro.constructors.ConstructorRegistry:
    """Rules by which tyro reads every flag that is an int or a float: as scaling/quantities.py does."""
    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def read_number(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec | None:
        if info.type not in (int, float):
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=1,
            metavar=info.type.__name__.upper(),
            instance_from_str=lambda texts: read_flag(texts[0], info.type),
            is_instance=lambda value: isinstance(value, info.type) and not isinstance(value, bool),
            str_from_instance=lambda value: [str(value)],
        )

    return registry


def read_flag(text: str, kind: type[int] | type[float]) -> int | float:
    """The number of a flag. Raises ValueError, whose message begins with the text, where it is none of that kind."""
    try:
        return parse_count(text) if kind is int else float(parse_quantity(text))
    except ValueError as error:
        raise ValueError(f"{text}: {error}") from None


if __name__ == "__main__":
    main()
