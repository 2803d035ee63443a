"""A folder for every run, and what is said at its end."""

from __future__ import annotations

import copy
import json
import os
import shlex
import shutil
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.cli import LightningArgumentParser, SaveConfigCallback
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from calorefine.data.batches import Batch
from calorefine.errors import TrainingError
from calorefine.events import Columns
from calorefine.fit.progress import progress
from calorefine.fit.resume import OPTIONS_KEY, options
from calorefine.io.hdf5 import is_hdf5
from calorefine.io.names import owner
from calorefine.io.reductions import branches
from calorefine.models.base import GenerativeModel
from calorefine.nets import n_parameters

LARGEST_DISTANCE = 3.0  # in standard errors
BELOW_ZERO = "a distance below 0 is a fluctuation: the estimate has no bias, and is about 0 where nothing differs"


def new_run_dir(root: Path, name: str) -> Path:
    """Create the first free folder ``root/name/000``, ``001``, ...; safe against other processes doing the same."""
    parent = root / name
    parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        candidate = parent / f"{number:03d}"
        try:
            candidate.mkdir()
        except FileExistsError:
            number += 1
        else:
            return candidate


def is_first_process() -> bool:
    """Tell, before there is a trainer, whether Lightning, Slurm or torchrun count this process as the first one."""
    node = os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", "0"))
    return getattr(rank_zero_only, "rank", 0) == 0 and int(node) == 0


def loggers(run_dir: Path) -> list[Logger]:
    """CSV and TensorBoard logs inside the run's folder."""
    return [CSVLogger(run_dir, name=None, version="csv"), TensorBoardLogger(run_dir, name=None, version="tensorboard")]


def callbacks(run_dir: Path, *, progress_bar: bool) -> list[pl.Callback]:
    """Checkpoints `best.ckpt` (see `BestCheckpoint`) and `last.ckpt`, the progress, and the closing summary."""
    folder = run_dir / "checkpoints"
    best = BestCheckpoint(folder, filename="best", monitor="val_loss", enable_version_counter=False)
    last = LastCheckpoint(folder, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    bar: list[pl.Callback] = [progress()] if progress_bar else []
    return [best, last, RunSummary(run_dir, best), *bar]


class BestCheckpoint(ModelCheckpoint):
    """The latest checkpoint, unless its validation loss is beyond doubt above the lowest one.

    It is the last one of nearly every training, where rates have fallen and the average is long.  Held-out samples are
    small, and their weights signed: the validation losses of late checkpoints differ by less than their errors, and the
    lowest one is that of a fluctuation.  An earlier checkpoint is kept where the later ones are worse by more than
    `SIGNIFICANT` standard errors of the difference: of a training that diverges, or learns its events by heart.
    """

    def check_monitor_top_k(self, trainer: pl.Trainer, current: torch.Tensor | None = None) -> bool:
        """Tell whether the present model becomes the best one."""
        del current
        return bool(trainer.callback_metrics["val_excess"] <= 0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy the earlier run's best checkpoint, and leave the earlier run as it is."""
        earlier, score = Path(state_dict["best_model_path"]), state_dict["best_model_score"]
        if not earlier.is_file() or score is None:
            return
        copied = str(Path(str(self.dirpath)) / "best.ckpt")
        if getattr(rank_zero_only, "rank", 0) == 0:
            Path(copied).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(earlier, copied)
        self.best_model_path = self.kth_best_model_path = copied
        self.best_model_score = self.kth_value = score
        self.best_k_models = {copied: score}


class LastCheckpoint(ModelCheckpoint):
    """ModelCheckpoint of the latest epoch; a resumed run starts its own."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Forget the earlier run's file."""


class SaveConfig(SaveConfigCallback):
    """Save the complete configuration as ``config.yaml`` in the run's folder, and in its checkpoints."""

    def __init__(self, parser: LightningArgumentParser, config: Any, **options: Any) -> None:
        """Take the folder from the trainer later."""
        super().__init__(parser, config, save_to_log_dir=False, **options)

    def save_config(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Write the file."""
        path = Path(trainer.default_root_dir) / self.config_filename
        self.parser.save(self.config, path, skip_none=False, overwrite=False, multifile=False)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Add the options, to compare them with those of a run that goes on from there."""
        del trainer, pl_module
        checkpoint[OPTIONS_KEY] = self._options

    @cached_property
    def _options(self) -> dict[str, Any]:
        """Options of the run, which take longer to write out than a checkpoint does."""
        return options(self.parser, self.config)


class RunSummary(pl.Callback):
    """Say at the end what was trained on what, how well, where it is, and what to do next."""

    def __init__(self, run_dir: Path, best: ModelCheckpoint) -> None:
        """Remember where the run's files are."""
        self.run_dir, self.best = run_dir, best
        self.start = time.perf_counter()
        self.text = ""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:  # noqa: ARG002
        """Tell all processes the folder that the first one has made."""
        self.run_dir = Path(trainer.strategy.broadcast(str(self.run_dir)))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002
        """Start the clock."""
        self.start = time.perf_counter()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the summary, in the first of several processes.

        Raises:
            TrainingError: there is no checkpoint.
        """
        if not trainer.is_global_zero:
            return
        spec: Any = pl_module.spec  # set before training
        data = spec["provenance"]
        score = self.best.best_model_score
        distance = "none: no validation ran" if score is None else f"{float(score):.5f}"
        checkpoint = Path(self.best.best_model_path or self.run_dir / "checkpoints" / "last.ckpt")
        if not checkpoint.is_file():
            msg = f"{self.run_dir}: training ended within its first epoch, and left no checkpoint; expected more time"
            raise TrainingError(msg)
        check = _check(trainer, pl_module, checkpoint)
        below = pl_module.validated_by == "energy distance" and score is not None and score < 0
        rows = {
            "model": f"{type(pl_module).__name__}, {n_parameters(pl_module):,} trainable parameters",
            "data": f"{', '.join(data['files'])}: {data['n_train']} training, {data['n_validation']} held-out events",
            "weights": f"{data['weights']}: sum_w {data['sum_w']:.1f}, n_eff {_n_eff(data)}",
            "positive": _positive(data),
            "replica": _replica(data),
            "precision": _offsets(Columns.from_dict(spec["columns"])),
            "training": f"{trainer.current_epoch} epochs in {time.perf_counter() - self.start:.0f} s",
            "validation": f"{distance} ({pl_module.validated_by} of held-out events, chosen checkpoint)",
            "check": check,
            "checkpoint": checkpoint,
            "note": BELOW_ZERO if below or "events -" in check else "",
            "next": _next(trainer, spec, checkpoint),
        }
        self.text = "\n".join(f"{name:>10}  {value}" for name, value in rows.items() if value)
        (self.run_dir / "summary.txt").write_text(self.text + "\n")
        trainer.print(f"\n{self.text}")


def _next(trainer: pl.Trainer, spec: dict[str, Any], checkpoint: str | Path) -> str:
    """The command that generates events at the conditions of the training sample, with the branches that tell them."""
    source, columns = trainer.datamodule.source, Columns.from_dict(spec["columns"])  # type: ignore[attr-defined]
    context = [owner(name) for text in columns.expressions("context").values() for name in branches(text)]
    generated = {*map(columns.branch, columns.features), "in_domain", "copy"}
    carried = [name for name in dict.fromkeys([*columns.key_branches, *context]) if name not in generated]
    output = "generated.h5" if is_hdf5(source.paths[0]) else "generated.root"
    words = ["calorefine", "sample", "--checkpoint", str(checkpoint), "--tree", source.tree, "--conditions"]
    files = str(source.paths[0]) if len(source.paths) == 1 else json.dumps(list(map(str, source.paths)))
    return shlex.join([*words, files, "--output", output, "--pass_through", ",".join(carried)])


def _check(trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: Path) -> str:
    """Energy distance of the chosen checkpoint's events from held-out ones, and whether it is too large for a success.

    Trained generators have been within one standard error of zero, one with an AUC of 0.86 at four.
    """
    loaders: Any = trainer.val_dataloaders
    if loaders is None:
        return ""
    last = copy.deepcopy(pl_module.state_dict())
    module: Any = pl_module
    module.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
    distance, error = held_out_distance(module, next(iter(loaders)))
    module.load_state_dict(last)
    found = f"energy distance from held-out events {distance:.5f} +- {error:.5f}"
    if failure(distance, error):
        return (
            f"FAILED: {found}: generated events differ; train longer, or look at the losses in {checkpoint.parents[1]}"
        )
    return found


def held_out_distance(model: GenerativeModel, events: Batch) -> tuple[float, float]:
    """Energy distance of a model's events from held-out ones, in physical units, and its standard error."""
    terms = model.distance(Batch(*(array.to(model.device) for array in events)))
    return float(terms.mean()), 2 * float(terms.std()) / len(terms) ** 0.5


def failure(distance: float, error: float) -> bool:
    """Whether this distance is too large for a success."""
    return distance > LARGEST_DISTANCE * error


def _n_eff(data: dict[str, Any]) -> str:
    """Effective number of events: of the signed weights, where positive ones were made of them."""
    if not data.get("positive"):
        return f"{data['n_eff']:.0f}"
    return f"{data['n_eff_signed']:.0f} (of the signed weights; positive ones were made of them)"


def _positive(data: dict[str, Any]) -> str:
    """Where positive weights differ most from the signed ones; nothing without."""
    regions = (data.get("positive") or {}).get("regions", {})
    pulls = {name: (r["positive"] - r["signed"]) / r["error"] for name, r in regions.items() if r["error"] > 0}
    if not pulls:
        return ""
    name = max(pulls, key=lambda key: abs(pulls[key]))
    region = regions[name]
    difference = f"{region['positive'] - region['signed']:.4g} +- {region['error']:.3g} of {region['signed']:.4g}"
    return f"minus signed weights differs most from 0, of {len(regions)} regions, in '{name}': {difference}"


def _offsets(columns: Columns) -> str:
    """What is taken off columns that single precision would make coarse."""
    texts = [f"{name} - {offset:.15g}" for name, offset in columns.offsets.items()]
    return f"{', '.join(texts)} in single precision, which would be coarse without" if texts else ""


def _replica(data: dict[str, Any]) -> str:
    """Which bootstrap replica was trained; nothing for the nominal sample."""
    replica = data.get("replica") or {"index": 0}
    fitted = "fitted again" if replica.get("refit") else "nominal weight functions"
    return f"{replica['index']}, seed {replica['seed']}, {fitted}" if replica["index"] else ""
