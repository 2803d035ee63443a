"""Generated events of ROOT files without weights: each is kept with probability w / w_max.

The weight w is the event's own times the reweighter's factor, which is 1 for events outside of the reweighter's cut.
The decision is a function of the event's key and the seed.

One large weight makes all others improbable.  Where few events are kept though the effective number of the weights is
high, a smaller maximum m is suggested, which cuts 0.1 % off the sum of weights: the sum of w - m over all w > m.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from calorefine import keys, stats
from calorefine.errors import ConfigError, EmptySelectionError, WeightError
from calorefine.io.rewrite import rewriting
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import TreeFormat
from calorefine.reweighting.latent_resampling import accepted
from calorefine.reweighting.reweighted_files import GeneratedFiles, Weighed
from calorefine.reweighting.reweighter import Reweighter
from calorefine.reweighting.sums import MeanFactors, Totals
from calorefine.stats import FloatArray

FEW_KEPT, HIGH_N_EFF, LOST = 0.3, 0.5, 1e-3
LOG_STEP, LOWEST, N_STEPS = 0.02, -30.0, 3000  # of the logarithm of a weight


class WeightHistogram:
    """Number and sum of weights in narrow bins of their logarithm."""

    def __init__(self) -> None:
        """Start empty."""
        self.counts, self.sums = np.zeros(N_STEPS), np.zeros(N_STEPS)

    def add(self, weight: FloatArray) -> None:
        """Count weights (n,); those of 0 make no difference."""
        own = weight[weight > 0]
        cell = np.clip((np.log(own) - LOWEST) / LOG_STEP, 0, N_STEPS - 1).astype(np.int64)
        self.counts += np.bincount(cell, minlength=N_STEPS)
        self.sums += np.bincount(cell, own, N_STEPS)

    def maximum(self, lost: float) -> tuple[float, float]:
        """Smallest maximum that cuts at most this share off the sum of weights, and how many events it would keep.

        Returns:
            The maximum, to within 2 %, and the sum of the weights cut at it, over the maximum.
        """
        upper = np.exp(LOWEST + LOG_STEP * np.arange(1, N_STEPS + 1))
        above = self.sums.sum() - np.cumsum(self.sums) - upper * (self.counts.sum() - np.cumsum(self.counts))
        chosen = int(np.argmax(above <= lost * self.sums.sum()))
        return float(upper[chosen]), float((self.sums.sum() - above[chosen]) / upper[chosen])


@dataclass(frozen=True)
class UnweightSummary:
    """What was kept.

    Attributes:
        output: the file.
        totals: of the weights before.
        n_kept: number of events kept.
        maximum: weight that is kept for sure.
        n_above: number of events with a larger one, of which too few are kept.
        cut: of the reweighter.
        suggested: maximum that would keep more, and how many; None if there is no need of one.
    """

    output: Path
    totals: Totals
    n_kept: int
    maximum: float
    n_above: int
    cut: str | None
    suggested: tuple[float, float] | None

    def __str__(self) -> str:
        """Report for the terminal."""
        n = self.totals.n
        lines = [f"{self.output}: {self.n_kept} of {n} events kept, {self.n_kept / max(n, 1):.2%}, of weight 1 each"]
        lines.append(
            f"effective number of events before {self.totals.n_eff:.1f}; kept for certain from {self.maximum:.3g} on"
        )
        if self.n_above:
            lines.append(f"WARNING: {self.n_above} events have a weight above --max_factor and are kept too rarely")
        if self.suggested:
            maximum, kept = self.suggested
            lines.append(
                f"HINT: few events have the largest weights; --max_factor {maximum:.3g} would keep about {kept:.0f} "
                f"events, {kept / n:.1%}, and cut {LOST:.1%} off the sum of weights"
            )
        return "\n".join([*lines, *self.totals.mean_factors(), *self.totals.left_out(self.cut)])

    def to_dict(self) -> dict[str, Any]:
        """For the provenance."""
        own = {"n_kept": self.n_kept, "maximum": self.maximum, "n_above": self.n_above}
        return {**own, **self.totals.to_dict()}


def unweight_files(
    *,
    reweighter: str,
    generated: str,
    output: str,
    tree: str = "events",
    generated_weight: str = "none",
    max_factor: float | None = None,
    seed: int = 0,
    tree_format: TreeFormat | None = None,
    overwrite: bool = False,
) -> UnweightSummary:
    """Write the events that are kept with probability weight / largest weight, in their order and without a new branch.

    Events outside of the reweighter's cut or of its domain have factor 1, and are kept or not like all others.

    Args:
        reweighter: a file of `calorefine reweight`.
        generated: ROOT files with features and context; a path or a glob.
        output: the ROOT file to write.
        tree: name of the tree.
        generated_weight: branch or expression of not negative weights that the events have, or "none"; it is used up.
        max_factor: weight from which on all events are kept; the largest one of the files, if left out.  Give one to
            get the same events from parts of the files.
        seed: of the decisions.
        tree_format: "ttree" or "rntuple"; that of the input, if left out.
        overwrite: replace an existing output.

    Returns:
        What was kept.

    Raises:
        CalorefineError: bad input; nothing is written then.
        EmptySelectionError: no event is kept.
    """
    model, sample = Reweighter.load(reweighter), WeightedFiles(generated, tree, generated_weight)
    if max_factor is not None and not (np.isfinite(max_factor) and max_factor > 0):
        raise ConfigError(f"max_factor: {max_factor} found, expected a positive number")
    totals, histogram, n_kept, n_above = Totals(MeanFactors(model)), WeightHistogram(), 0, 0
    number = 1 + sample.provenance.get("unweight", {}).get("number", 0)  # decisions again would be those of before
    files = GeneratedFiles(model, sample)
    files.refuse_corrected(Path(reweighter))
    inputs = [Path(reweighter)]
    with rewriting(
        sample.source, files.request, output, inputs=inputs, tree_format=tree_format, overwrite=overwrite
    ) as copy:
        maximum = max_factor or _largest(files)
        for part in files.weighed(copy):
            _require_nonnegative(files, part)
            kept = accepted(part.weight, _copy_key(part), largest=maximum, seed=seed, purpose=f"unweight {number}")
            copy.extend(part.chunk.take(kept), {})
            totals.add(part, part.weight)
            histogram.add(part.weight)
            n_kept, n_above = n_kept + int(np.sum(kept)), n_above + int(np.sum(part.weight > maximum))
        if n_kept == 0:
            msg = f"{sample.source}: none of {totals.n} events is kept; lower --max_factor {maximum:g}"
            raise EmptySelectionError(msg)
        suggested = _suggested(totals, histogram, n_kept, maximum)
        summary = UnweightSummary(Path(output), totals, n_kept, maximum, n_above, model.columns.cut, suggested)
        entry = files.described(Path(reweighter)) | {"seed": seed, "number": number} | summary.to_dict()
        copy.finish(sample.provenance | {"unweight": entry})
    return summary


def _suggested(totals: Totals, histogram: WeightHistogram, n_kept: int, maximum: float) -> tuple[float, float] | None:
    """Maximum that would keep more events and how many, if few were kept of weights that aren't very different."""
    if n_kept >= FEW_KEPT * totals.n or totals.n_eff <= HIGH_N_EFF * totals.n_keys:
        return None
    smaller, kept = histogram.maximum(LOST)
    return (smaller, kept) if smaller < maximum else None


def _largest(files: GeneratedFiles) -> float:
    """Largest weight, from one pass over the files."""
    largest = max(float(part.weight.max()) for part in files.weighed())
    return stats.require_positive_sum(
        [largest], f"{files.sample.source}, generated_weight '{files.sample.weight}', largest weight"
    )


def _require_nonnegative(files: GeneratedFiles, part: Weighed) -> None:
    if bad := int(np.sum(~(part.generated >= 0))):
        msg = f"{files.sample.source}: {bad} events have a negative generated_weight '{files.sample.weight}', expected "
        raise WeightError(f"{msg}none: they can't be kept with a probability; leave out --unweight true")


def _copy_key(part: Weighed) -> keys.KeyArray:
    """Keys (n,) of the events; copies of an event at the same conditions have their own."""
    copy = part.chunk.branches.get("copy")
    return part.chunk.key if copy is None else keys.combine(part.chunk.key, copy)
