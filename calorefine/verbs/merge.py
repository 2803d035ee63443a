"""`calorefine merge`: simulators of slices in, one file that samples each row by the simulator of its slice out."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from calorefine.ensemble.members import Ensemble
from calorefine.ensemble.merged import write_merged
from calorefine.errors import CheckpointError, ConfigError, FileError
from calorefine.io.provenance import PROVENANCE_FILE, digest, made_by, recorded, write_json
from calorefine.io.writer import check_outputs, naming, not_an_input
from calorefine.simulator import Simulator
from calorefine.simulator_map import SimulatorMap, load_simulator

VERB = "merge"


@dataclass(frozen=True)
class MergeSummary:
    """What was put together.

    Attributes:
        output: the file, or the folder of an ensemble.
        simulator: the map, the nominal one of an ensemble.
        members: names of the members; none of a file.
    """

    output: Path
    simulator: SimulatorMap
    members: list[str]

    def __str__(self) -> str:
        """Report for the terminal."""
        parts = self.simulator.parts
        whole = f", {len(self.members)} members" if self.members else ""
        lines = [f"{self.output}: {len(parts)} slices by {', '.join(self.simulator.by)}{whole}"]
        return "\n".join([*lines, *(f"{part}: {part.name}" for part in parts)])


@recorded(VERB)
def merge_files(*, checkpoints: list[str], by: str | list[str], output: str, overwrite: bool = False) -> MergeSummary:
    """Put simulators of several slices into one file, which samples each row by the simulator of its slice.

    A slice is told by the cut of its training (`charge > 0 && abs(eta) < 0.8`) or, for columns of the context that the
    cut doesn't compare with numbers, by the range of its training events.  All verbs take the file as a checkpoint.  Of
    folders of `calorefine ensemble` it makes one, whose members are maps.

    Args:
        checkpoints: checkpoints of `lightning fit`, or folders of `calorefine ensemble`, one for each slice; the words
            before all options.
        by: expressions of the context and of further branches that tell the slices apart, as a list or separated by
            commas, such as charge,abs(eta).
        output: the file to write; of ensembles, the folder.
        overwrite: replace an existing output.

    Returns:
        The slices.

    Raises:
        CalorefineError: slices that overlap or that a training doesn't tell; simulators with other columns; replicas
            that count events otherwise.  Nothing is left under the output's name.
    """
    paths, target = [Path(name) for name in checkpoints], Path(output)
    expressions = split(by) if isinstance(by, str) else by
    if repeated := [path for path in paths if paths.count(path) > 1]:
        raise ConfigError(f"checkpoints: '{repeated[0]}' found {paths.count(repeated[0])} times, expected once")
    not_an_input(target, paths)
    named = dict(zip(distinct(paths), paths, strict=True))
    folders = [name for name, path in named.items() if path.is_dir()]
    if folders and len(folders) < len(named):
        other = next(name for name in named if name not in folders)
        msg = f"checkpoints: '{folders[0]}' is a folder, '{other}' is none; expected either checkpoints or ensembles"
        raise ConfigError(msg)
    if not folders:
        check_outputs(target, overwrite=overwrite)
        digests = {name: digest(path) for name, path in named.items() if path.is_file()}
        merged = SimulatorMap.merge({name: _single(path) for name, path in named.items()}, expressions, digests=digests)
        merged.save(target)
        return MergeSummary(target, merged, [])
    with _replacing_folder(target, overwrite=overwrite) as beside:
        ensembles = {name: Ensemble.load(path) for name, path in named.items()}
        merged = write_merged(ensembles, expressions, beside)
        write_json(beside / PROVENANCE_FILE, made_by())
    return MergeSummary(target, merged, list(next(iter(ensembles.values())).records))


def _single(path: Path) -> Simulator:
    """Load the simulator of a slice.

    Raises:
        CheckpointError: as by `load_simulator`, or it is a map itself.
    """
    loaded = load_simulator(path)
    if isinstance(loaded, Simulator):
        return loaded
    raise CheckpointError(
        f"{path}: is a map itself, expected the checkpoints that it was made of, and the further ones"
    )


def split(text: str) -> list[str]:
    """Expressions that commas separate, outside of parentheses and back-quotes.

    >>> split("charge, where(p > 1, p, 1), `a,b`")
    ['charge', 'where(p > 1, p, 1)', '`a,b`']
    """
    parts, depth = [""], 0
    for piece in re.findall(r"`[^`]*`|.", text):
        depth += (piece in "([") - (piece in ")]")
        if piece == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece
    return [part.strip() for part in parts if part.strip()]


def distinct(paths: Sequence[Path]) -> list[str]:
    """Names of files, with as many of their folders as tell them apart.

    >>> distinct([Path("runs/barrel/000/best.ckpt"), Path("runs/endcap/000/best.ckpt")])
    ['barrel/000/best.ckpt', 'endcap/000/best.ckpt']
    """
    for n in range(1, max((len(path.parts) for path in paths), default=0) + 1):
        names = ["/".join(path.parts[-n:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [str(path) for path in paths]


@contextmanager
def _replacing_folder(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Give an empty folder beside `path`; move it there at the end, or remove it if anything was raised.

    Raises:
        ConfigError: there is something already, which may not be replaced or which `merge` has not written.
        FileError: there is a file, no folder to write in, or no permission.
    """
    if path.exists() and not path.is_dir():
        raise FileError(f"{path}: is a file, expected the name of a folder for an ensemble")
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise ConfigError(f"{path}: exists already; choose another output, or replace it with --overwrite true")
        if not _is_merged(path):
            raise ConfigError(f"{path}: holds something else than merged ensembles; choose another output")
    if not path.absolute().parent.is_dir():
        raise FileError(f"{path}: there is no folder '{path.parent}'; create it first")
    beside, before = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "before"))
    try:
        with naming(path):
            beside.mkdir()
            yield beside
            if path.exists():
                path.rename(before)
            beside.rename(path)
    finally:
        if before.exists() and not path.exists():
            before.rename(path)
        for left in (beside, before):
            shutil.rmtree(left, ignore_errors=True)


def _is_merged(folder: Path) -> bool:
    """Whether `merge` has written a folder."""
    record = folder / PROVENANCE_FILE
    try:
        return bool(json.loads(record.read_text(encoding="utf-8"))["verb"] == VERB)
    except (OSError, ValueError, KeyError, TypeError):
        return False
