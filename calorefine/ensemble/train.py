"""Train members of an ensemble in this process: side by side if the recipe allows it, else one after the other.

An interrupted training continues from its last complete epoch, and ends with the same parameters.
"""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from calorefine.data.module import EventDataModule, digest_of_events
from calorefine.ensemble.members import CHECKPOINT, RECORD, Member, alike, differs
from calorefine.ensemble.side_by_side import HISTORY, can_train_together, together, training_batches, validation_batches
from calorefine.errors import ConfigError
from calorefine.fit.command import lightning
from calorefine.fit.progress import ProgressLines
from calorefine.fit.runs import LastCheckpoint, failure, held_out_distance
from calorefine.io.lock import locked
from calorefine.io.provenance import digest
from calorefine.io.saved import read_saved
from calorefine.io.writer import replacing
from calorefine.models.base import EPOCHS_KEY, GenerativeModel
from calorefine.simulator import Simulator

LAST = "checkpoints/last.ckpt"
ONE_THREAD = ("--threads", "1")  # of each process, whatever the configuration says


@dataclass(frozen=True)
class Recipe:
    """How each member is trained.

    Args:
        fit: configuration of `lightning fit`.
        options: further options of it.
        folder: of the ensemble.
    """

    fit: str
    options: tuple[str, ...]
    folder: Path

    def make(self) -> Any:
        """Return the command, not run, with data module, model and trainer."""
        quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        return lightning(["-c", self.fit, *self.options, *quiet, *ONE_THREAD], run=False)

    @staticmethod
    def digest(command: Any) -> str:
        """Identity of the complete configuration."""
        return sha256(command.parser.dump(command.config, skip_none=False).encode()).hexdigest()


def require_same_data(recipe: Recipe, expected: Mapping[str, str]) -> None:
    """Refuse a folder with members of another configuration or other data.

    Args:
        recipe: how further members are trained.
        expected: digests of theirs.

    Raises:
        ConfigError: a member differs.
    """
    for path in sorted(recipe.folder.glob(f"*/{RECORD}")):
        if otherwise := differs(json.loads(path.read_text()), expected):
            what = "these files hold" if "data" in otherwise else f"{recipe.fit} with these options"
            msg = f"{path.parent}: was trained {otherwise} than {what}; choose another output, or remove the folder"
            raise ConfigError(msg)


def train_members(recipe: Recipe, members: Sequence[Member]) -> None:
    """Train those of these members that have no record yet, and leave one of each.

    Those with equal batches train side by side; a group of them that was interrupted is taken up as it was.
    """
    for group in alike(members):
        missing = [member for member in group if not (recipe.folder / member.name / RECORD).is_file()]
        begun = any(recipe.folder.glob(f"{_unfinished(group)}-*/last.ckpt"))
        with ExitStack() as stack:
            for member in missing:
                stack.enter_context(locked(recipe.folder / member.name))
            if missing:
                _train_group(recipe, group if begun else missing)


def _unfinished(members: Sequence[Member]) -> str:
    """How the names of folders begin that keep an unfinished training of these members side by side."""
    return f".{members[0].name}-{len(members)}"


def _train_group(recipe: Recipe, members: Sequence[Member]) -> None:
    command = recipe.make()
    identity = recipe.digest(command)
    data = _data(command.datamodule, members)
    shared = {"config_sha256": identity, "data_sha256": data[0].digest_of_rows()}
    require_same_data(recipe, shared)
    seeds = [member.seed(command.config.seed_everything) for member in members]
    models = [untrained(command.model, own, seed) for own, seed in zip(data, seeds, strict=True)]
    unfinished = recipe.folder / "-".join([_unfinished(members), *(digits[:12] for digits in shared.values())])
    if len(members) > 1 and can_train_together(models[0]):
        history = _train_together(command.trainer, models, data, seeds, _folders(recipe, members), unfinished)
    else:
        history = [
            _train_alone(recipe, member, seed, runs)
            for member, seed, runs in zip(members, seeds, _run_folders(recipe, identity, members, data), strict=True)
        ]
    for member, seed, own, losses in zip(members, seeds, data, history, strict=True):
        _record(recipe, member, seed, own, shared | {"val_loss": losses})
    shutil.rmtree(unfinished, ignore_errors=True)


def _folders(recipe: Recipe, members: Sequence[Member]) -> list[Path]:
    return [recipe.folder / member.name for member in members]


def _data(first: EventDataModule, members: Sequence[Member]) -> list[EventDataModule]:
    """Data of each member, set up; the files are read once.

    Raises:
        ConfigError: the configuration is that of a replica itself.
    """
    if first.replica.index:
        raise ConfigError(f"data.replica.index: {first.replica.index} found, expected 0: the ensemble counts replicas")
    nominal = first.for_replica(first.replica)
    nominal.setup()
    data = [nominal.for_replica(member.replica(first.replica)) for member in members]
    for own in data:
        own.setup()
    return data


def untrained(model: GenerativeModel, data: EventDataModule, seed: int) -> GenerativeModel:
    """Return a model as it is before its first step, with the numbers that this seed gives it."""
    pl.seed_everything(seed, verbose=False)
    fresh = type(model)(**model.options)
    fresh.set_up(data)
    return fresh


def _train_together(
    trainer: pl.Trainer,
    models: Sequence[GenerativeModel],
    data: Sequence[EventDataModule],
    seeds: Sequence[int],
    folders: Sequence[Path],
    unfinished: Path,
) -> list[list[float]]:
    """Train on a common tensor axis, from where an earlier run of the same members was interrupted.

    Args:
        trainer: not used before.
        models: of the members, untrained.
        data: of the members.
        seeds: of the members.
        folders: of the members.
        unfinished: folder of what is kept of an unfinished training.

    Returns:
        The validation losses of each member.
    """
    keep = LastCheckpoint(unfinished, filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer.callbacks += [keep, ProgressLines()]  # type: ignore[attr-defined]  # set by Lightning
    joined = together(models, [folder / CHECKPOINT for folder in folders])
    last = unfinished / "last.ckpt"
    for folder in folders if not last.is_file() else ():
        (folder / CHECKPOINT).unlink(missing_ok=True)  # of another training, which was not finished
    if not _is_finished(last):
        batches = training_batches(data, seeds), validation_batches(data)
        trainer.fit(joined, *batches, ckpt_path=last if last.is_file() else None, weights_only=True)
        history = joined.history
        for index in (k for k, folder in enumerate(folders) if not (folder / CHECKPOINT).is_file()):  # never validated
            replica = joined.split_off(index)
            Simulator(replica, replica.spec or {}).save(folders[index] / CHECKPOINT)
    else:
        history = _saved(last, HISTORY)[HISTORY]
    return [[losses[k] for losses in history] for k in range(len(folders))]


def _run_folders(
    recipe: Recipe, identity: str, members: Sequence[Member], data: Sequence[EventDataModule]
) -> list[Path]:
    """Where each member's runs are: what another configuration or other data have left is not taken up."""
    identities = [f"{identity[:12]}-{digest_of_events(own.train)[:12]}" for own in data]
    return [folder / "runs" / name for folder, name in zip(_folders(recipe, members), identities, strict=True)]


def _train_alone(recipe: Recipe, member: Member, seed: int, runs: Path) -> list[float]:
    """Train by `lightning fit`, in runs inside the member's folder; return the validation losses."""
    folder = recipe.folder / member.name
    started = sorted(runs.glob(f"*/*/{LAST}"))
    if not (started and _is_finished(started[-1])):
        options = ["--runs", str(runs), "--seed_everything", str(seed)]
        options += ["--data.replica.index", str(member.index)] if member.kind == "replica" else []
        options += ["--ckpt_path", str(started[-1])] if started else []
        options += ["--trainer.enable_progress_bar", "true"]
        finished: Any = lightning(["fit", "-c", recipe.fit, *recipe.options, *options, *ONE_THREAD])
        started.append(finished.run_dir / LAST)
    best = started[-1].with_name("best.ckpt")
    Simulator.load(best if best.is_file() else started[-1]).save(folder / CHECKPOINT)
    return _losses(runs)


def _losses(runs: Path) -> list[float]:
    """Validation losses in the order of steps; one that was found again after an interruption counts once."""
    paths = sorted(runs.glob("*/*/csv/metrics.csv"))
    rows = [row for path in paths for row in csv.DictReader(path.read_text().splitlines()) if row.get("val_loss")]
    by_step = {int(row["step"]): float(row["val_loss"]) for row in rows}
    return [by_step[step] for step in sorted(by_step)]


def _is_finished(last: Path) -> bool:
    """Whether a training left this checkpoint after its last epoch."""
    if not last.is_file():
        return False
    checkpoint = _saved(last, EPOCHS_KEY)
    return bool(checkpoint["epoch"] + 1 >= checkpoint[EPOCHS_KEY])


def _saved(last: Path, key: str) -> dict[str, Any]:
    """Content of a checkpoint of a training that may go on, or is at its end."""
    return read_saved(
        last, key, what="checkpoint", expected="one of 'calorefine ensemble'; without it training starts anew"
    )


def _record(recipe: Recipe, member: Member, seed: int, data: EventDataModule, more: Mapping[str, Any]) -> None:
    """Write what is known of a trained member; its folder is complete then."""
    folder = recipe.folder / member.name
    simulator = Simulator.load(folder / CHECKPOINT)
    distance, error = held_out_distance(simulator.model, next(iter(data.val_dataloader())))
    content = {
        "name": member.name,
        "kind": member.kind,
        "index": member.index,
        "seed": seed,
        "fit": recipe.fit,
        "options": list(recipe.options),
        "checkpoint_sha256": digest(folder / CHECKPOINT),
        "distance": distance,
        "distance_error": error,
        "failed": failure(distance, error),
        **{key: simulator.spec["provenance"][key] for key in ("replica", "n_train", "sum_w", "n_eff_signed", "digest")},
        **more,
    }
    with replacing(folder / RECORD, overwrite=True) as beside:
        beside.write_text(json.dumps(content, indent=1) + "\n")
