"""`lightning fit|validate|test|predict`: LightningCLI with a folder for each run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from calorefine.data.module import EventDataModule
from calorefine.errors import CheckpointError, ConfigError, Stopped, without_hints
from calorefine.fit import runs
from calorefine.fit.predicted import write_predicted
from calorefine.fit.resume import options, require_same_options
from calorefine.fit.trainer_options import misfit, missing_package, require_fitting
from calorefine.io.saved import read_saved
from calorefine.io.writer import naming
from calorefine.models.base import GenerativeModel
from calorefine.options import OptionsParser, load_yaml, mode_of, refuse_unfit

MOST_THREADS, LARGEST_SEED = 512, 2**32 - 1  # torch ends a process that asks for very many threads; NumPy's limit
SUBCOMMANDS = ("fit", "validate", "test", "predict")


class Parser(OptionsParser, LightningArgumentParser):
    """Lightning's parser, which ends with one short message."""


class CLI(LightningCLI):
    """LightningCLI with a folder for each run, and calorefine's defaults."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what concerns the run, not the trainer."""
        parser.add_argument("--runs", type=str, default="runs", help="Folder that gets a new folder for every run.")
        parser.add_argument("--threads", type=int, default=1, help="Threads of torch; small networks want one.")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the arguments given, or the command line's."""
        self.config = parser.parse_args(args)
        verb = self.config.get("subcommand")
        given = self.config[verb] if verb else self.config
        refuse_unfit(self._parser(verb), given)
        _require_within("threads", given["threads"], 1, MOST_THREADS, "; small networks want one")
        _require_within("seed_everything", given["seed_everything"], 0, LARGEST_SEED)

    def before_instantiate_classes(self) -> None:
        """Make the run's folder."""
        torch.set_num_threads(self._get(self.config, "threads"))
        self.run_dir: Path | None = None
        if self.subcommand == "fit" and not self._get(self.config, "trainer").fast_dev_run:
            files = self._get(self.config, "config") or []
            name = Path(str(files[0])).stem if files else "run"
            self.first = not _several(self._get(self.config, "trainer")) or runs.is_first_process()
            parent = Path(self._get(self.config, "runs"))
            self.run_dir = runs.new_run_dir(parent, name) if self.first else parent / name  # others are told in `fit`

    def _parse_ckpt_path(self) -> None:
        """Look at the checkpoint; take the model from one that is evaluated, while a training has its own options.

        Raises:
            CheckpointError: one that isn't there, is damaged or can't go on with these options; none to evaluate.
        """
        verb = self.config.get("subcommand")
        path = self.config[verb].get("ckpt_path") if verb else None
        if path is None:
            if verb in ("validate", "test", "predict"):
                msg = f"--ckpt_path: none given, expected the checkpoint of 'lightning fit' to {verb}"
                raise CheckpointError(msg)
            return
        content = read_saved(Path(path), "state_dict", what="checkpoint", expected="one of 'lightning fit'")
        if verb == "fit":
            require_same_options(path, content, options(self._parser("fit"), self.config["fit"]))
        else:
            super()._parse_ckpt_path()

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; if it is stopped, name the last checkpoint of a training; where the disk is full, the run's folder.

        Raises:
            ConfigError: options that Lightning finds not to fit as it starts.
        """
        try:
            with naming(self.run_dir) if self.run_dir else nullcontext():
                super()._run_subcommand(subcommand)
        except MisconfigurationException as error:
            raise misfit(error, self._get(self.config, "trainer")) from error
        except (KeyboardInterrupt, SystemExit) as end:
            raise (Stopped.of(end, self._last_checkpoint()) or end) from None

    def _last_checkpoint(self) -> str:
        """What to say of the last checkpoint of a training that was stopped."""
        if self.run_dir is None:
            return ""
        last = self.run_dir / "checkpoints" / "last.ckpt"
        checkpoint = last if last.is_file() else self._get(self.config, "ckpt_path")
        return f"; the last checkpoint is {checkpoint}" if checkpoint else "; there is no checkpoint yet"

    def instantiate_classes(self) -> None:
        """Make trainer, data module and model.

        Raises:
            ConfigError: one of them, such as a logger, needs a package that isn't installed.
        """
        try:
            super().instantiate_classes()
        except ValueError as error:
            if missing := missing_package(error):
                raise ConfigError(f"{missing}; expected an installed package") from error
            raise

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Any]) -> Trainer:
        """Make the trainer; raise `ConfigError` for options that Lightning refuses."""
        try:
            return super()._instantiate_trainer(config, callbacks)
        except (MisconfigurationException, ValueError) as error:
            raise misfit(error, config) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer the run's loggers and callbacks.

        Raises:
            ConfigError: an option of it doesn't fit.
        """
        given = self._get(self.config_init, "trainer")
        require_fitting(given)
        if self.run_dir is None:
            self.save_config_callback = None
            return super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)
        progress_bar = given.get("enable_progress_bar") is not False
        self.trainer_defaults["callbacks"] = runs.callbacks(self.run_dir, progress_bar=progress_bar)
        logger = runs.loggers(self.run_dir) if given.get("logger") is None else given["logger"]
        trainer = super().instantiate_trainer(default_root_dir=self.run_dir, logger=logger, **kwargs)
        if trainer.is_global_zero != self.first:
            msg = f"trainer: process {trainer.global_rank} of {trainer.world_size}"
            msg += ", but the environment tells another rank"
            raise ConfigError(f"{msg}; give --trainer.strategy ddp, --trainer.devices and --trainer.num_nodes")
        return trainer

    def after_predict(self) -> None:
        """Write the generated events, and say where they are."""
        parts: Any = self.trainer.predict_loop.predictions
        output = write_predicted(Path(self._get(self.config, "ckpt_path")), self.datamodule, parts)
        sys.stdout.write(f"{output}: {sum(map(len, parts))} events, generated at the conditions of the held-out ones\n")

    def after_fit(self) -> None:
        """Learn the run's folder, where another process made it; say that a trial leaves none."""
        if self.run_dir is None:
            sys.stdout.write("trainer.fast_dev_run: training and validation ran without an error; nothing is written\n")
            return
        callbacks: Any = self.trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning
        self.run_dir = next(callback.run_dir for callback in callbacks if isinstance(callback, runs.RunSummary))


def lightning(args: Sequence[str] | None = None, *, run: bool = True) -> CLI:
    """Run `lightning fit|validate|test|predict`; return the finished command with its trainer and model.

    Args:
        args: arguments of the command line; the process's own, if left out.
        run: whether to run; if not, the arguments are those of a verb without its name, and all that it would use is
            made.
    """
    without_hints()
    mode = mode_of("checked", load_yaml)
    return CLI(
        GenerativeModel,
        EventDataModule,
        subclass_mode_model=True,
        save_config_callback=runs.SaveConfig,
        seed_everything_default=1,
        parser_class=Parser,
        parser_kwargs={"parser_mode": mode, **{verb: {"parser_mode": mode} for verb in SUBCOMMANDS}},
        auto_configure_optimizers=False,
        run=run,
        args=list(args) if args is not None else None,
    )


def _require_within(name: str, given: int, least: int, most: int, advice: str = "") -> None:
    """Refuse a number out of a range.

    Raises:
        ConfigError: it is out of it.
    """
    if not least <= given <= most:
        raise ConfigError(f"{name}: {given} found, expected {least} to {most}{advice}")


def _several(trainer: Any) -> bool:
    """Tell whether these options of a trainer ask for several processes."""
    alone = {"strategy": "auto", "devices": "auto", "num_nodes": 1}
    return any(str(trainer.get(name, value)) not in (str(value), "1") for name, value in alone.items())
