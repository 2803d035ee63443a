"""The command lines: `lightning fit|validate|test|predict`, and `calorefine` with every stage.

`calorefine fit|test|predict` are those of `lightning`; `calorefine validate` compares files.

All verbs take their options from YAML (`-c file.yaml`), from the command line, or both; `--print_config` shows all.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jsonargparse import ArgumentParser

from calorefine.errors import CalorefineError
from calorefine.fit.command import CLI, _quiet, lightning
from calorefine.verbs.compare import compare_models
from calorefine.verbs.ensemble import ensemble_models
from calorefine.verbs.fractions import fractions_file
from calorefine.verbs.log_prob import log_prob_file
from calorefine.verbs.plot import plot_files
from calorefine.verbs.propagate import propagate_files
from calorefine.verbs.replica_weights import replica_weights
from calorefine.verbs.report import report_files
from calorefine.verbs.reweight import reweight_files
from calorefine.verbs.sample import sample_file
from calorefine.verbs.splot import splot_file
from calorefine.verbs.validate import validate_files
from calorefine.verbs.weights_report import weights_report

LIGHTNING_VERBS = ("fit", "test", "predict")  # forwarded; `lightning validate` is only there
VERBS: dict[str, Callable[..., Any]] = {
    "splot": splot_file,
    "fractions": fractions_file,
    "weights-report": weights_report,
    "ensemble": ensemble_models,
    "sample": sample_file,
    "replica-weights": replica_weights,
    "log-prob": log_prob_file,
    "reweight": reweight_files,
    "propagate": propagate_files,
    "report": report_files,
    "plot": plot_files,
    "compare": compare_models,
    "validate": validate_files,
}


def calorefine(args: Sequence[str] | None = None) -> Any:
    """Run a verb of `calorefine`."""
    _quiet()
    given = list(sys.argv[1:] if args is None else args)
    if given and given[0] in LIGHTNING_VERBS:
        return lightning(given if args is not None else None)
    parser = ArgumentParser(
        prog="calorefine", allow_abbrev=False, description="Generators trained on weighted calibration data."
    )
    subcommands = parser.add_subcommands(dest="verb", required=True)
    for name in LIGHTNING_VERBS:
        subcommands.add_subcommand(name, ArgumentParser(), help=f"The same as 'lightning {name}'.")
    for name, function in VERBS.items():
        verb = ArgumentParser(description=(function.__doc__ or "").partition("\n")[0])
        verb.add_argument("-c", "--config", action="config", help="Options from a YAML file.")
        verb.add_function_arguments(function, as_positional=False)
        subcommands.add_subcommand(name, verb, help=verb.description)
    options = parser.parse_args([_underscores(arg) for arg in given])
    torch.set_num_threads(1)
    instantiated = parser.instantiate(options)[options.verb]
    return VERBS[options.verb](**{key: value for key, value in instantiated.items() if key != "config"})


def _underscores(arg: str) -> str:
    """Let `--n-per-event` mean `--n_per_event`."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _on_purpose(error: BaseException | None) -> CalorefineError | None:
    """Return the error raised on purpose, also where jsonargparse has wrapped it in others."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, CalorefineError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _report(run: Callable[[], Any]) -> None:
    """Run a command; print its result, or its error without a traceback."""
    try:
        result = run()
    except Exception as error:
        if found := _on_purpose(error):
            sys.stderr.write(f"error: {found}\n")
            sys.exit(1)
        raise
    if result is not None and not isinstance(result, CLI):
        sys.stdout.write(f"{result}\n")


def lightning_main() -> None:
    """Console script `lightning`."""
    _report(lightning)


def calorefine_main() -> None:
    """Console script `calorefine`."""
    _report(calorefine)
