"""`calorefine log-prob`: ROOT files in, the same events with the log density that a simulator gives them, streamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calorefine.events import Column, adapted_columns, unknown_columns
from calorefine.io.provenance import recorded
from calorefine.io.rewrite import rewriting
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import TreeFormat

IN_DOMAIN_SUFFIX = "_in_domain"  # after the branch's name: of two models' branches each has its own domain


@dataclass
class LogProbSummary:
    """What was written.

    Args:
        output: the file.
        branch: name of the branch of log densities.
        n_events: rows written.
        n_impossible: rows with -inf.
        total: sum of the other ones.
        n_outside: rows outside the training domain, by context column, and in combination.
        n_outside_any: rows outside in any way.
    """

    output: Path
    branch: str
    n_events: int = 0
    n_impossible: int = 0
    total: float = 0.0
    n_outside: Counter[str] = field(default_factory=Counter)
    n_outside_any: int = 0

    def __str__(self) -> str:
        """Report for the terminal."""
        from calorefine.simulator import outside_domain

        mean = self.total / max(self.n_events - self.n_impossible, 1)
        return (
            f"{self.output}: {self.n_events} events with branch {self.branch}, mean {mean:.4f} nats; "
            f"{self.n_impossible} impossible (-inf)\n"
            + outside_domain(f"{self.branch}{IN_DOMAIN_SUFFIX}", self.n_outside_any, self.n_events, self.n_outside)
        )


@recorded("log-prob")
def log_prob_file(
    *,
    checkpoint: str,
    files: str | list[str],
    output: str,
    tree: str = "events",
    branch: str = "log_prob",
    columns: dict[str, Column] | None = None,
    tree_format: TreeFormat = "ttree",
    overwrite: bool = False,
) -> LogProbSummary:
    """Write the events of ROOT files with the log density of their features given their context as a further branch.

    Another one, `<branch>_in_domain`, tells whether training events have such a context.

    The density is that of a trained model with a likelihood, in original units; where a feature is an atom or an
    integer, it is a probability.  The difference of two models' branches is the log likelihood ratio of two hypotheses.
    The events' weights play no role.

    Args:
        checkpoint: a checkpoint of `lightning fit`, or a map of `calorefine merge`.
        files: ROOT files with features and context; a path, a glob, or a list.
        output: the ROOT file to write, with the same rows in the same order.
        tree: name of the tree, in the input and in the output.
        branch: name of the branch to write; float64, nats per event, -inf for what is impossible.
        columns: expressions of columns where these files name or scale them otherwise.
        tree_format: "ttree", or "rntuple", which ROOT reads from version 6.34 on.
        overwrite: replace an existing output.

    Returns:
        What was written.

    Raises:
        CalorefineError: bad input, or a model without a likelihood; nothing is left under the output's name.
    """
    from calorefine.simulator import provenance, warn_of_outside
    from calorefine.simulator_map import load_simulator

    simulator = load_simulator(checkpoint)
    simulator.require_likelihood()
    sample, known = WeightedFiles(files, tree), simulator.columns
    unknown_columns(columns or {}, [*known.features, *known.context], option="--columns")
    adapted = adapted_columns(known, columns or {}, option="--columns")
    summary = LogProbSummary(Path(output), branch)
    with rewriting(
        sample.source,
        sample.request(adapted, adapted.expressions("features", "context")),
        output,
        adds=[branch, branch + IN_DOMAIN_SUFFIX],
        hint="choose another one with --branch",
        inputs=[Path(checkpoint)],
        tree_format=tree_format,
        overwrite=overwrite,
    ) as copy:
        for chunk in copy.chunks():
            values, inside = simulator.log_prob(chunk.values), simulator.inside(chunk.values)
            in_domain = np.logical_and.reduce([np.ones(len(values), bool), *inside.values()])
            copy.extend(chunk, {branch: values, branch + IN_DOMAIN_SUFFIX: in_domain})
            _count(summary, values, in_domain, inside)
        content: dict[str, Any] = {
            "n_outside_domain": summary.n_outside_any,
            "files": [path.name for path in sample.source.paths],
            "branch": branch,
        }
        copy.finish(provenance(simulator, Path(checkpoint)) | content)
    warn_of_outside(str(sample.source), summary.n_outside_any, summary.n_events, summary.n_outside, simulator)
    return summary


def _count(
    summary: LogProbSummary,
    values: NDArray[np.float64],
    in_domain: NDArray[np.bool_],
    inside: Mapping[str, NDArray[np.bool_]],
) -> None:
    """Add the events of one chunk to the summary."""
    finite = np.isfinite(values)
    summary.n_events += len(values)
    summary.n_impossible += int(np.sum(~finite))
    summary.total += float(values[finite].sum())
    summary.n_outside_any += int(np.sum(~in_domain))
    summary.n_outside += Counter({name: int(np.sum(~rows)) for name, rows in inside.items()})
