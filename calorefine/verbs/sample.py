"""`calorefine sample`: conditions from ROOT or shower files in, generated events as such a file out, streamed."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.errors import ConfigError
from calorefine.events import Column, Columns, adapted_columns, units_of, unknown_columns
from calorefine.io.chunks import Chunk, Request, rows_of
from calorefine.io.hdf5 import SUFFIXES
from calorefine.io.provenance import recorded
from calorefine.io.rewrite import rewriting
from calorefine.io.sample import CONTEXTS, WeightedFiles
from calorefine.io.shower_checks import ENERGIES, SHOWERS
from calorefine.io.sources import Source, TreeFormat
from calorefine.io.table import check_unique, warn_of_row_keys
from calorefine.keys import KeyArray


@dataclass
class SampleSummary:
    """What was generated.

    Args:
        output: the file.
        n_conditions: rows read.
        n_generated: rows written.
        n_outside: conditions outside the training domain, by context column, and in combination.
        n_outside_any: conditions outside in any way.
        seconds: wall time.
        refined: the simulator with a reweighter's correction, which counted its draws.
    """

    output: Path
    n_conditions: int = 0
    n_generated: int = 0
    n_outside: Counter[str] = field(default_factory=Counter)
    n_outside_any: int = 0
    seconds: float = 0.0
    refined: Any = None  # its module is imported where it is needed, so that --help starts at once
    contexts: Any = field(default_factory=hashlib.sha256)

    def __str__(self) -> str:
        """Report for the terminal."""
        from calorefine.simulator import outside_domain

        rate = self.n_generated / max(self.seconds, 1e-9)
        lines = [f"{self.output}: {self.n_generated} events in {self.seconds:.1f} s ({rate:,.0f} per second)"]
        lines.append(outside_domain("in_domain", self.n_outside_any, self.n_conditions, self.n_outside))
        lines += [str(self.refined)] if self.refined else []
        return "\n".join(lines)


@recorded("sample")
def sample_file(
    *,
    checkpoint: str,
    conditions: str | list[str],
    output: str,
    tree: str | None = None,
    seed: int = 0,
    n_per_event: int = 1,
    pass_through: str | list[str] = "",
    context: dict[str, Column] | None = None,
    key: list[str] | None = None,
    reweighter: str | None = None,
    tree_format: TreeFormat = "ttree",
    overwrite: bool = False,
) -> SampleSummary:
    """Generate events at the conditions of files and write them as a tree with the same rows in the same order.

    The output holds the features by name, `in_domain`, the branches to pass through, with n_per_event > 1 also `copy`,
    and its provenance as a JSON string.  The values of an event depend on its key, the seed and the copy alone.  An
    output that ends in .h5 or .hdf5 is a shower file as the CaloChallenge's: `showers`, a feature, and
    `incident_energies`, which are passed through from the conditions, in MeV.

    Args:
        checkpoint: a checkpoint of `lightning fit`, or a map of `calorefine merge`.
        conditions: ROOT or shower files with the context columns; a path, a glob, or a list.  If the simulator was
            trained on a collection (Electron), each entry of its lists is a condition, and the output holds lists as
            long as those.
        output: the file to write: HDF5 if it ends in .h5 or .hdf5, else ROOT.
        tree: name of the tree, in the conditions and in the output; that of the training sample, if left out.
            Of a shower file the group that holds the datasets, `/` for the root of the file.
        seed: seed of the latent noise.
        n_per_event: how many events to generate at each condition.
        pass_through: branches to copy, fixed-size arrays as well and, with a collection, lists; as a list or separated
            by commas.
        context: expressions of context columns where this file names or scales them otherwise.
        key: key branches where this file names them otherwise; [] identifies events by file and row.
        reweighter: a file of `calorefine reweight`: events are then drawn with its correction, and need no weight.
        tree_format: of a ROOT file: "ttree", or "rntuple", which ROOT reads from version 6.34 on.
        overwrite: replace an existing output.

    Returns:
        What was generated.

    Raises:
        CalorefineError: bad input; nothing is left under the output's name.
    """
    from calorefine.simulator import identity, provenance, warn_of_outside
    from calorefine.simulator_map import load_simulator

    start = time.perf_counter()
    simulator = load_simulator(checkpoint)
    columns = _columns(simulator.columns, context, key)
    if columns.collection and n_per_event > 1:
        raise ConfigError(f"n_per_event: {n_per_event} found, expected 1 for the entries of '{columns.collection}'")
    sample = WeightedFiles(conditions, tree or simulator.spec["provenance"].get("tree", "events"))
    if not columns.key:
        warn_of_row_keys(sample.source)
    carried = _carried(pass_through, columns)
    if Path(output).suffix.lower() in SUFFIXES:
        carried = _with_energies(carried, columns, sample.source)
    corrections = [Path(reweighter)] if reweighter else []
    refined = _refined(simulator, reweighter) if reweighter else None
    summary = SampleSummary(Path(output), refined=refined)
    seen: list[KeyArray] = []
    with rewriting(
        sample.source,
        Request.of(columns, columns.expressions("context"), branches=carried),
        output,
        copies_all=False,
        inputs=[Path(checkpoint), *corrections],
        expects="conditions to generate events at",
        tree_format=tree_format,
        overwrite=overwrite,
    ) as copy:
        for chunk in copy.chunks(rows=rows_of(columns.n_features * n_per_event)):
            seen.append(chunk.key)
            copy.extend(chunk, _generated(simulator, chunk, seed, n_per_event, summary), copies=n_per_event)
        check_unique(np.concatenate([*seen, np.zeros(0, np.uint64)]), str(sample.source), columns.key_branches)
        copy.finish(
            provenance(simulator, Path(checkpoint))
            | {
                "conditions": [path.name for path in sample.source.paths],
                "seed": seed,
                "n_per_event": n_per_event,
                "n_conditions": summary.n_conditions,
                CONTEXTS: summary.contexts.hexdigest(),
                "n_outside_domain": summary.n_outside_any,
            }
            | {f"reweighter{end}": value for path in corrections for end, value in identity(path).items()}
        )
    warn_of_outside(str(sample.source), summary.n_outside_any, summary.n_conditions, summary.n_outside, simulator)
    summary.seconds = time.perf_counter() - start
    return summary


def _refined(simulator: Any, reweighter: str) -> Any:
    """The simulator with a reweighter's correction."""
    from calorefine.reweighting.latent_resampling import RefinedSimulator
    from calorefine.reweighting.reweighter import Reweighter

    return RefinedSimulator(simulator, Reweighter.load(reweighter))


def _carried(pass_through: str | list[str], columns: Columns) -> list[str]:
    """Names of the branches to pass through; none of them may be that of a generated one."""
    if isinstance(pass_through, str):
        carried = [name.strip() for name in pass_through.split(",") if name.strip()]
    else:
        carried = list(pass_through)
    if clash := {*map(columns.branch, [*columns.features, "in_domain"]), "copy"} & set(carried):
        raise ConfigError(f"pass_through: {sorted(clash)} are names of generated branches, expected other ones")
    return carried


def _with_energies(carried: list[str], columns: Columns, source: Source) -> list[str]:
    """Branches to pass through to a shower file: `incident_energies` as well, if the conditions have them.

    Raises:
        ConfigError: the showers are in another unit than the file.
    """
    unit = units_of(columns).get(SHOWERS)
    if unit and unit != "MeV":
        raise ConfigError(f"feature '{SHOWERS}': is in {unit}, expected MeV in a shower file; write a .root file")
    given = ENERGIES in [*carried, *columns.features] or ENERGIES not in source.branch_paths()
    return carried if given else [*carried, ENERGIES]


def _columns(columns: Columns, context: dict[str, Column] | None, key: list[str] | None) -> Columns:
    """Columns of the checkpoint, adapted to the names of the conditions file."""
    unknown_columns(context or {}, columns.context, option="--context")
    adapted = adapted_columns(columns, context or {}, option="--context")
    branches = columns.key if key is None else key
    return replace(adapted, key=branches, candidate=columns.candidate if key is None else None)


def _generated(
    simulator: Any, chunk: Chunk, seed: int, n_per_event: int, summary: SampleSummary
) -> dict[str, NDArray[Any]]:
    """Generate the events of one chunk, and count them."""
    given: dict[str, Any] = {"seed": seed, "key": chunk.key, "n_per_event": n_per_event}
    generated: dict[str, NDArray[Any]]
    if summary.refined:
        generated = summary.refined.sample(chunk.values, event_key=chunk.event_key, **given)
    else:
        generated = simulator.sample(chunk.values, **given)
    summary.contexts.update(simulator.columns.encode_context(chunk.values, strict=False).tobytes())
    summary.n_conditions += len(chunk)
    summary.n_generated += len(chunk) * n_per_event
    summary.n_outside_any += int(np.sum(~generated["in_domain"][::n_per_event]))
    summary.n_outside += simulator.count_outside(chunk.values)
    copy = {} if n_per_event == 1 else {"copy": np.tile(np.arange(n_per_event, dtype=np.int32), len(chunk))}
    return generated | copy
