"""The command lines: `lightning fit|validate|test|predict`, and `calorefine` with every stage.

`calorefine fit|test|predict` are those of `lightning`; `calorefine validate` compares files.

All verbs take their options from YAML (`-c file.yaml`), from the command line, or both; `--print_config` shows all.
A sample is an option with parts: `--reference.files F --reference.weight w`; a plain `--reference F` names its files.
Only the module of the verb that was asked for is imported.
"""

from __future__ import annotations

import argparse
import ast
import json
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import version
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, get_args, get_type_hints

from calorefine.errors import CalorefineError, CalorefineNote, ConfigError, Stopped, nearest, without_hints

LIGHTNING_VERBS = ("fit", "test", "predict")  # forwarded; `lightning validate` is only there
VERBS: dict[str, tuple[str, str]] = {
    "splot": ("splot", "splot_file"),
    "fractions": ("fractions", "fractions_file"),
    "weights-report": ("weights_report", "weights_report"),
    "ensemble": ("ensemble", "ensemble_models"),
    "merge": ("merge", "merge_files"),
    "sample": ("sample", "sample_file"),
    "replica-weights": ("replica_weights", "replica_weights"),
    "log-prob": ("log_prob", "log_prob_file"),
    "reweight": ("reweight", "reweight_files"),
    "propagate": ("propagate", "propagate_files"),
    "report": ("report", "report_files"),
    "plot": ("plot", "plot_files"),
    "compare": ("compare", "compare_models"),
    "validate": ("validate", "validate_files"),
}
"""Module in `calorefine.verbs` and function of each verb."""
WORDS = {"merge": "checkpoints"}
"""Option that the words before all options are the values of, by verb."""


def calorefine(args: Sequence[str] | None = None) -> Any:
    """Run a verb of `calorefine`."""
    given = list(sys.argv[1:] if args is None else args)
    verb = given[0] if given else "--help"
    if verb in LIGHTNING_VERBS:
        return _lightning(given)
    if verb not in VERBS:
        return _verb_parser(verb).parse_args([verb])
    without_hints()
    module, name = VERBS[verb]
    return _run(verb, getattr(import_module(f"calorefine.verbs.{module}"), name), given[1:])


def _lightning(args: Sequence[str] | None = None) -> Any:
    from calorefine.fit.command import lightning

    return lightning(args)


def _run(verb: str, function: Callable[..., Any], args: Sequence[str]) -> Any:
    """Call the function of a verb with the options of its command line."""
    from calorefine.io.sample import WeightedFiles
    from calorefine.options import OptionsParser, load_yaml, mode_of, refuse_unfit

    hints = get_type_hints(function)
    samples = [name for name, kind in hints.items() if WeightedFiles in (kind, *get_args(kind))]
    mode = mode_of("samples", lambda text, path="": _records(load_yaml(text, path), samples))
    description = (function.__doc__ or "").partition("\n")[0]
    options: dict[str, Any] = {"allow_abbrev": False, "parser_mode": mode}
    parser = OptionsParser(prog=f"calorefine {verb}", description=description, **options)
    parser.add_argument("-c", "--config", action="config", help="Options from a YAML file.")
    parser.add_argument("--modules", type=str, default="", help="Files of your own recipes, such as my_generators.")
    parser.add_function_arguments(function, as_positional=False, sub_configs=True)
    parsed = parser.parse_args(_spelled(_named(args, WORDS.get(verb)), samples))
    refuse_unfit(parser, parsed)
    _import_modules(parsed.pop("modules"))
    given = parser.instantiate(parsed)
    _one_thread()
    return function(**{key: value for key, value in given.items() if key != "config"})


def _one_thread() -> None:
    """Small networks want one thread each; what else runs beside is other processes."""
    import torch

    torch.set_num_threads(1)


def _records(content: Any, samples: Sequence[str]) -> Any:
    """Options of a YAML file, where a path, a glob or a list of them stands for a sample of these files."""
    if not isinstance(content, dict):
        return content
    plain = {name for name in samples if isinstance(content.get(name), str | list)}
    return {name: {"files": value} if name in plain else value for name, value in content.items()}


def _named(args: Sequence[str], option: str | None) -> list[str]:
    """Let `a b --by c` mean `--checkpoints=["a", "b"] --by c`."""
    words = [] if option is None else list(takewhile(lambda arg: not arg.startswith("-"), args))
    return [*([f"--{option}={json.dumps(words)}"] if words else []), *args[len(words) :]]


def _spelled(args: Sequence[str], samples: Sequence[str]) -> list[str]:
    """Let `--n-per-event` mean `--n_per_event`, and `--reference F` `--reference.files F`."""
    spelled = []
    for arg, following in pairwise([*args, ""]):
        name, equals, value = arg.partition("=")
        if name.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            name += ".files" if name[2:] in samples and not (value or following).startswith(("{", "null")) else ""
        spelled.append(name + equals + value)
    return spelled


def _import_modules(names: str) -> None:
    """Import a user's own modules, separated by commas."""
    for name in filter(None, map(str.strip, names.split(","))):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            near = nearest(name, [path.stem for path in Path().glob("*.py")])
            msg = f"--modules {name}: {error}{near}; expected a module of the current folder or of this environment"
            raise ConfigError(msg) from error


def _verb_parser(verb: str) -> argparse.ArgumentParser:
    """Parser for what is no verb: help, the version, or an error with the nearest verb."""
    description = "Generators trained on weighted calibration data."
    parser = argparse.ArgumentParser(prog="calorefine", description=description)
    parser.add_argument("--version", action="version", version=f"calorefine {version('calorefine')}")
    subparsers = parser.add_subparsers(title="verbs", metavar="VERB", help="one of these; VERB --help explains it")
    if verb in ("-h", "--help"):
        for name in VERBS:
            subparsers.add_parser(name, help=_summary(*VERBS[name]).replace("%", "%%"))
        for name in LIGHTNING_VERBS:
            subparsers.add_parser(name, help=f"The same as 'lightning {name}'.")
    elif verb != "--version":
        known = [*VERBS, *LIGHTNING_VERBS]
        parser.error(f"'{verb}' is no verb{nearest(verb, known)}; expected one of {', '.join(known)}")
    return parser


def _summary(module: str, function: str) -> str:
    """First line of a verb's docstring, without an import."""
    source = (Path(__file__).parent / "verbs" / f"{module}.py").read_text()
    definition = next(node for node in ast.parse(source).body if getattr(node, "name", "") == function)
    return (ast.get_docstring(definition) or "").partition("\n")[0]  # type: ignore[arg-type]  # a function


def _on_purpose(error: BaseException | None) -> CalorefineError | None:
    """Return the error raised on purpose, also where jsonargparse has wrapped it in others."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, CalorefineError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,  # noqa: ARG001  # fixed by Python
    lineno: int,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> str:
    """A warning, or a note, without the code that gave it."""
    return f"{'note' if issubclass(category, CalorefineNote) else 'warning'}: {message}\n"


def _report(run: Callable[[], Any]) -> None:
    """Run a command; print its result if it has a text of its own, or its error without a traceback.

    SIGTERM ends it as Ctrl-C does: unfinished files are removed, and the status tells.

    Recipes in files of the current folder are found, as `python -m` finds them.
    """
    if "" not in sys.path:
        sys.path.append("")
    signal.signal(signal.SIGTERM, _terminate)
    warnings.formatwarning = _one_line
    try:
        result = run()
    except (KeyboardInterrupt, SystemExit) as end:
        if (stopped := Stopped.of(end)) is None:
            raise
        sys.stderr.write(f"\n{stopped.text}\n")
        raise stopped from None
    except Exception as error:
        if known := _on_purpose(error):
            sys.stderr.write(f"error: {known}\n")
            sys.exit(1)
        if "Does not validate against any of" in str(error):
            from calorefine.options import OptionsParser

            OptionsParser().error(str(error))
        if isinstance(error, OSError) and error.strerror:
            sys.stderr.write(f"error: {error.filename or 'output'}: {error.strerror}\n")
            sys.exit(1)
        raise
    reports: Any = type(result).__str__
    if result is not None and reports != object.__str__:
        sys.stdout.write(f"{result}\n")


def _terminate(number: int, frame: object) -> None:
    """Answer to SIGTERM."""
    del frame
    raise Stopped(number)


def lightning_main() -> None:
    """Console script `lightning`."""
    _report(_lightning)


def calorefine_main() -> None:
    """Console script `calorefine`."""
    _report(calorefine)
