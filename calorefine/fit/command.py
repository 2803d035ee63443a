"""`lightning fit|validate|test|predict`: LightningCLI with a folder for each run."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.cli import LightningArgumentParser, LightningCLI

from calorefine.data.module import EventDataModule
from calorefine.errors import CheckpointError, ConfigError, nearest, without_hints
from calorefine.fit import runs
from calorefine.io.writer import naming
from calorefine.models.base import GenerativeModel
from calorefine.options import OptionsParser, load_yaml, mode_of, refuse_nulls

VERBS = ("fit", "validate", "test", "predict")
CHECKPOINT_WORDS = ("best", "last", "hpc", "registry")


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
        refuse_nulls(self._parser(verb), self.config[verb] if verb else self.config)

    def before_instantiate_classes(self) -> None:
        """Make the run's folder."""
        torch.set_num_threads(self._get(self.config, "threads"))
        self.run_dir: Path | None = None
        checkpoint = self._get(self.config, "ckpt_path")
        if checkpoint and checkpoint not in CHECKPOINT_WORDS and not Path(checkpoint).is_file():
            siblings = [str(path) for path in Path(checkpoint).parent.glob("*.ckpt")]
            raise CheckpointError(f"--ckpt_path {checkpoint}: no such checkpoint{nearest(checkpoint, siblings)}")
        if self.subcommand == "fit":
            files = self._get(self.config, "config") or []
            name = Path(str(files[0])).stem if files else "run"
            self.first = not _several(self._get(self.config, "trainer")) or runs.is_first_process()
            parent = Path(self._get(self.config, "runs"))
            self.run_dir = runs.new_run_dir(parent, name) if self.first else parent / name  # others are told in `fit`

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the trainer the run's loggers and callbacks."""
        if self.run_dir is None:
            self.save_config_callback = None
            return super().instantiate_trainer(logger=False, enable_checkpointing=False, **kwargs)
        options = self._get(self.config_init, "trainer")
        progress_bar = options.get("enable_progress_bar") is not False
        self.trainer_defaults["callbacks"] = runs.callbacks(self.run_dir, progress_bar=progress_bar)
        given = options.get("logger")
        logger = runs.loggers(self.run_dir) if given is None else given
        trainer = super().instantiate_trainer(default_root_dir=self.run_dir, logger=logger, **kwargs)
        if trainer.is_global_zero != self.first:
            msg = f"trainer: process {trainer.global_rank} of {trainer.world_size}"
            msg += ", but the environment tells another rank"
            raise ConfigError(f"{msg}; give --trainer.strategy ddp, --trainer.devices and --trainer.num_nodes")
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run it; where the disk is full, the message names the run's folder."""
        with naming(self.run_dir) if self.run_dir else nullcontext():
            super()._run_subcommand(subcommand)

    def after_fit(self) -> None:
        """Learn the run's folder, where another process made it."""
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
        parser_kwargs={"parser_mode": mode, **{verb: {"parser_mode": mode} for verb in VERBS}},
        auto_configure_optimizers=False,
        run=run,
        args=list(args) if args is not None else None,
    )


def _several(trainer: Any) -> bool:
    """Tell whether these options of a trainer ask for several processes."""
    alone = {"strategy": "auto", "devices": "auto", "num_nodes": 1}
    return any(str(trainer.get(name, value)) not in (str(value), "1") for name, value in alone.items())
