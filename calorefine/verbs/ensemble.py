"""`calorefine ensemble`: bootstrap replicas of a generator, and repetitions with other seeds.

Members are divided into groups, which are trained each in one process; a group's members train side by side: replicas,
or the nominal and other seeds, since a replica's batches are smaller.  The groups are written down before they are
trained, so that a run that was killed at any time, started again, does what is missing and ends with the same files;
members that are asked for later are groups of their own.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from calorefine.data.batches import COUNTED
from calorefine.ensemble.members import RECORD, Ensemble, Member, alike, planned
from calorefine.ensemble.price import Price, price
from calorefine.ensemble.train import Recipe, require_same_data, train_members
from calorefine.errors import ConfigError, TrainingError
from calorefine.fit.runs import BELOW_ZERO
from calorefine.io.lock import locked
from calorefine.io.provenance import PROVENANCE_FILE, made_by, recorded, write_json
from calorefine.io.writer import replacing
from calorefine.stats import error_of_error
from calorefine.systematics.systematics import MOST_ERROR_OF_ERROR

MOST_TOGETHER = 16
GROUPS = "groups.json"  # names of the members that train in one process
GRACE = 20.0  # seconds that trainings have to end in; batch systems give 30 to the command


@dataclass(frozen=True)
class EnsembleSummary:
    """What was trained.

    Attributes:
        ensemble: all members that are finished.
        trained: names of those that this run trained.
        seconds: wall time.
    """

    ensemble: Ensemble
    trained: list[str]
    seconds: float

    def __str__(self) -> str:
        """Report for the terminal."""
        records = self.ensemble.records.values()
        replicas, seeds = (len(self.ensemble.names(kind)) for kind in ("replica", "seed"))
        failed = [record["name"] for record in records if record["failed"]]
        lines = [
            f"{self.ensemble.folder}: nominal, {replicas} replicas, {seeds} seeds; {len(self.trained)} of them trained "
            f"in {self.seconds:.0f} s",
            f"energy distance from held-out events: {_range([record['distance'] for record in records])}, "
            f"each +- {_range([record['distance_error'] for record in records])}",
        ]
        if any(record["distance"] < 0 for record in records):
            lines.append(f"note: {BELOW_ZERO}")
        if failed:
            lines.append(f"WARNING: {', '.join(failed)}: events differ from held-out ones: not trained well")
        if replicas == 1:
            lines.append("WARNING: a single replica has no spread, from which to take an error")
        elif replicas > 1 and error_of_error(replicas - 1) > MOST_ERROR_OF_ERROR:
            lines.append(f"WARNING: an error from {replicas} replicas is known to {error_of_error(replicas - 1):.0%}")
        return "\n".join(lines)


@recorded("ensemble")
def ensemble_models(
    *,
    fit: str,
    output: str,
    options: list[str] | None = None,
    replicas: int = 20,
    seeds: int = 0,
    processes: int = 2,
    together: int | None = None,
    only: list[str] | None = None,
    dry_run: bool = False,
) -> EnsembleSummary | Price:
    """Train a generator, its bootstrap replicas, and repetitions with other seeds; go on where an earlier run stopped.

    Each replica counts the events by its own Poisson(1) numbers, functions of the events' keys, and redoes all that is
    derived from the data: the fit behind the weights, positive weights, preprocessing, training from another start.
    Every member gets a folder in the output with its checkpoint `best.ckpt` and a record `member.json`.

    Args:
        fit: configuration of `lightning fit`.
        output: folder of the ensemble; created if there is none.
        options: further options of `lightning fit`.
        replicas: number of bootstrap replicas.
        seeds: number of trainings on the nominal data with another seed.
        processes: how many processes train at the same time.
        together: how many members train side by side in one process; as many as keep all processes busy, at most 16,
            if left out.  Replicas and members on all events are never in one group.  Members are the same to rounding,
            whatever it is.
        only: names of the members to train in this process; all that are missing, if left out.
        dry_run: train a few steps alone, and tell what the members that are missing take: hours, disk, and how well the
            error of so many replicas is known.

    Returns:
        The finished members; what they take, of a dry run.

    Raises:
        CalorefineError: bad input; members of another configuration or other data; another run in the same folder; a
            training that failed.  What is finished is kept.
    """
    start = time.perf_counter()
    folder = Path(output)
    recipe = Recipe(fit, tuple(options or ()), folder)
    chosen = [Member.named(name) for name in only or ()]
    plan = _plan(folder, planned(replicas, seeds), processes, together) if only is None else [chosen]
    todo = [group for group in plan if not all((folder / member.name / RECORD).is_file() for member in group)]
    _check_members(recipe, todo, read=only is None or not todo)
    if dry_run:
        return price(recipe, todo, processes=processes if only is None else 1, replicas=replicas)
    if only is not None:
        train_members(recipe, chosen)
    else:
        with locked(folder):
            _train_all(recipe, plan, todo, processes)
    names = [member.name for group in todo for member in group]
    return EnsembleSummary(Ensemble.load(folder, complete=only is None), names, time.perf_counter() - start)


def _train_all(recipe: Recipe, plan: Sequence[list[Member]], todo: Sequence[list[Member]], processes: int) -> None:
    """Write the plan down, train those of its groups that are left, and leave the provenance."""
    with replacing(recipe.folder / GROUPS, overwrite=True) as beside:
        beside.write_text(json.dumps([[member.name for member in group] for group in plan]) + "\n")
    if len(todo) == 1 or processes == 1:
        for group in todo:
            train_members(recipe, group)
    else:
        _run(recipe, todo, processes)
    write_json(recipe.folder / PROVENANCE_FILE, made_by())


def _check_members(recipe: Recipe, todo: Sequence[list[Member]], *, read: bool) -> None:
    """Refuse replicas that can't be, and members of another training or, if the data are to be read, of other ones."""
    command = recipe.make()
    for member in chain.from_iterable(todo):
        command.datamodule.require_replicas(member.index if member.kind == "replica" else 0)
    require_same_data(recipe, {"config_sha256": recipe.digest(command)})
    if read and any(recipe.folder.glob(f"*/{RECORD}")):
        require_same_data(recipe, {"data_sha256": command.datamodule.digest_of_rows()})


def _plan(folder: Path, members: Sequence[Member], processes: int, together: int | None) -> list[list[Member]]:
    """Groups as an earlier run has divided these members, and those of members that it didn't know."""
    path = folder / GROUPS
    names = json.loads(path.read_text()) if path.is_file() else []
    earlier = [[member for member in members if member.name in group] for group in names]
    known = set(chain.from_iterable(earlier))
    new = [member for member in members if member not in known and not (folder / member.name / RECORD).is_file()]
    return [group for group in [*earlier, *_groups(new, processes, together)] if group]


def _groups(members: Sequence[Member], processes: int, together: int | None) -> list[list[Member]]:
    """Members that train side by side, in the order in which processes take them up; loads are even."""
    if processes < 1 or (together is not None and together < 1):
        raise ConfigError(f"processes {processes} and together {together} found, expected at least 1")
    if together is not None:
        return [part for group in alike(members) for part in _divided(group, together)]
    groups: list[list[Member]] = [[] for _ in range(2 * processes)]  # of each process: on all events, then replicas
    loads = [0.0] * processes
    for member in chain.from_iterable(alike(members)):
        freest = loads.index(min(loads))
        loads[freest] += COUNTED if member.kind == "replica" else 1.0
        groups[2 * freest + (member.kind == "replica")].append(member)
    ordered = groups[::2] + sorted(groups[1::2], key=len, reverse=True)
    return [part for group in ordered if group for part in _divided(group, MOST_TOGETHER)]


def _divided(members: Sequence[Member], most: int) -> list[list[Member]]:
    """Parts of at most so many, as equal as can be."""
    count = -(-len(members) // most)
    return [list(members[k::count]) for k in range(count)]


def _run(recipe: Recipe, groups: Sequence[list[Member]], processes: int) -> None:
    """Train each group in a process of its own.

    Raises:
        TrainingError: one of them failed; the others are finished.
    """
    waiting, failed = list(groups), []
    with _ended_with_this() as running:
        while waiting or running:
            while waiting and len(running) < processes:
                group = waiting.pop(0)
                running[_start(recipe, group)] = group
                how = "training side by side" if len(group) > 1 else "training"
                sys.stderr.write(f"{_names(group)}: {how}, progress in {_log(recipe, group)}\n")
            for process in [process for process in running if process.poll() is not None]:
                group = running.pop(process)
                sys.stderr.write(f"{_names(group)}: {'failed' if process.returncode else 'trained'}\n")
                if process.returncode:
                    failed.append(group)
            time.sleep(0.1)
    if failed:
        log = _log(recipe, failed[0])
        last = [line for line in log.read_text().splitlines() if line.strip()][-1:]
        names = _names([member for group in failed for member in group])
        raise TrainingError(f"{names}: training failed: {' '.join(last)}; all of it in {log}")


@contextmanager
def _ended_with_this() -> Iterator[dict[subprocess.Popen[bytes], list[Member]]]:
    """Trainings that end when this process is interrupted or asked to terminate; what they have saved is taken up."""
    running: dict[subprocess.Popen[bytes], list[Member]] = {}
    handles = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)) if handles else None
    try:
        yield running
    finally:
        _end(list(running))
        if handles:
            signal.signal(signal.SIGTERM, before)


def _end(running: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ask processes to end, and kill those that don't in time: an exception is lost where it meets a finalizer."""
    for process in running:
        process.terminate()
    deadline = time.monotonic() + GRACE
    for process in running:
        try:
            process.wait(timeout=max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _names(group: Sequence[Member]) -> str:
    return ", ".join(member.name for member in group)


def _start(recipe: Recipe, group: Sequence[Member]) -> subprocess.Popen[bytes]:
    options = [f"--options={list(recipe.options)!r}".replace("'", '"')] if recipe.options else []
    names = "[" + ",".join(member.name for member in group) + "]"
    command = ["ensemble", "--fit", recipe.fit, "--output", str(recipe.folder), "--only", names, *options]
    with _log(recipe, group).open("ab") as log:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-m", "calorefine", *command], stdout=log, stderr=subprocess.STDOUT, env=environment
        )


def _log(recipe: Recipe, group: Sequence[Member]) -> Path:
    return recipe.folder / f"{group[0].name}-{len(group)}.log"


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.4f} to {max(values):.4f}"
