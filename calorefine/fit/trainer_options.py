"""Options of Lightning's trainer that don't fit weighted generators, refused by name before anything is read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pytorch_lightning import Trainer

from calorefine.errors import ConfigError

OWN = ("callbacks", "logger", "default_root_dir")  # given by the command itself
ONE_BATCH = "1 or none: all held-out events are one batch"
FITTING: dict[str, tuple[tuple[Any, ...], str]] = {
    "precision": ((None, 32, "32", "32-true"), "32-true: preprocessing and losses are made for single precision"),
    "gradient_clip_val": ((None,), "none; a recipe has an option of its own, as model.init_args.clip_norm of a Flow"),
    "accumulate_grad_batches": ((1,), "1; a larger data.batch_size has the same effect"),
    "overfit_batches": ((0,), "0; a cut in data.columns trains on few events"),
    "limit_val_batches": ((None, 1), f"{ONE_BATCH}; a large trainer.check_val_every_n_epoch leaves it out"),
    "limit_test_batches": ((None, 1), ONE_BATCH),
    "limit_predict_batches": ((None, 1), ONE_BATCH),
    "default_root_dir": ((None,), "none; --runs names the folder of all runs"),
    "enable_checkpointing": ((None, True), "true: the checkpoint is what a training is for"),
    "barebones": ((False,), "false: the checkpoint is what a training is for"),
}
"""Values that can be used, and what is expected instead of others, by the option's name."""
POSITIVE = ("limit_train_batches", "max_epochs", "log_every_n_steps")


def require_fitting(given: Mapping[str, Any]) -> None:
    """Refuse options of a trainer that can't be used.

    Raises:
        ConfigError: the first of them.
    """
    for name, (values, expected) in FITTING.items():
        if given[name] not in values:
            found = (given[name] or 0) if isinstance(given[name], float) else given[name]  # Lightning 2.6.0 says 0.0
            raise ConfigError(f"trainer.{name}: {found} found, expected {expected}")
    for name in POSITIVE:
        if given[name] == 0:
            raise ConfigError(f"trainer.{name}: 0 found, expected more")


def misfit(error: Exception, given: Mapping[str, Any]) -> ConfigError:
    """Error for options that Lightning refuses itself, with those that it speaks of."""
    text, defaults = str(error), inspect.signature(Trainer.__init__).parameters
    changed = {k: v for k, v in given.items() if k not in OWN and k in defaults and v != defaults[k].default}
    named = [f"trainer.{name} {value}: " for name, value in changed.items() if name in text or str(value) in text]
    return ConfigError(f"{''.join(named) or 'trainer: '}{text}")


def missing_package(error: BaseException | None) -> str:
    """What Lightning says of a package that an object in a configuration needs and that isn't installed, or nothing."""
    while error is not None:
        if isinstance(error, ImportError):
            return str(error)
        error = error.__cause__
    return ""
