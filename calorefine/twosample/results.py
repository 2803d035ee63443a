"""What `calorefine validate` finds: records, and their tables for the terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from calorefine.text import aligned, number, with_error
from calorefine.twosample.binned import (
    Comparison,
    ContextBin,
    Deviation,
    Efficiencies,
    Moments,
    corrected_p_value,
)
from calorefine.twosample.classifier import ClassifierTest, Separation
from calorefine.twosample.distances import ColumnDistances, Distance
from calorefine.twosample.pair import Twins

Quantity = Literal["mean", "half_width", "std"]


@dataclass(frozen=True)
class SampleNumbers:
    """A sample: files, tree, weight expression, events, sum of weights, effective events."""

    files: list[str]
    tree: str
    weight: str
    n: int
    sum_w: float
    n_eff: float


@dataclass(frozen=True)
class WorstPull:
    """Largest pull of one quantity among all features and bins.

    Attributes:
        feature: where it is.
        context: column whose bin it is in.
        bin: its number, from 0.
        comparison: both values.
        n_pulls: number of pulls.
        p_value: probability of such a largest one among as many independent pulls.
    """

    feature: str
    context: str
    bin: int
    comparison: Comparison
    n_pulls: int
    p_value: float


@dataclass(frozen=True)
class Memorization:
    """Distance to the nearest training event in standardized features and context, and copies of its features.

    A copy is generated at another context than its training event has: only its features are alike.

    Attributes:
        n_training: training events.
        n_generated: generated events looked up, chosen by key.
        n_reference: reference events looked up.
        median: weighted medians of the distances; a ratio well below 1 means that training events were memorized.
        ks: of the distances.
        zero_generated: share of generated events at distance 0 of a training event in the features alone, within
            `validate.ROUNDING` of their half-widths; unweighted.
        zero_reference: likewise: by accident, or where the reference shares events with the training sample.
    """

    n_training: int
    n_generated: int
    n_reference: int
    median: Comparison
    ks: Distance
    zero_generated: float
    zero_reference: float


@dataclass(frozen=True)
class Validation:
    """What the JSON file says.

    Attributes:
        output: the JSON file.
        pictures: beside it.
        generated: the generated sample.
        reference: the reference.
        twins: how events of the samples that share their conditions are known: "keys" (where equal), "rows", "none".
        classifier: AUC and JSD.
        distances: feature to its distances.
        sliced: sliced Wasserstein-1 distance of features and context, in 68 % half-widths of the reference.
        moment_bins: context column to its bins.
        moments: feature to context column to its moments in each bin.
        efficiency_bins: context column to its bins.
        efficiencies: feature to level of the cut, as a quantile of the reference, to efficiencies.
        deviations: level to the average deviation of the efficiency, over features and bins.
        training_n_eff: effective events of the generator's training sample, by the generated file's provenance; the
            errors of moments and efficiencies hold its statistics.  None if the file doesn't tell, and they don't.
        memorization: None without a training file.
    """

    output: Path
    pictures: list[Path]
    generated: SampleNumbers
    reference: SampleNumbers
    twins: Twins
    classifier: ClassifierTest
    distances: dict[str, ColumnDistances]
    sliced: Distance
    moment_bins: dict[str, list[ContextBin]]
    moments: dict[str, dict[str, list[Moments]]]
    efficiency_bins: dict[str, list[ContextBin]]
    efficiencies: dict[str, dict[str, Efficiencies]]
    deviations: dict[str, Deviation]
    training_n_eff: float | None
    memorization: Memorization | None

    def worst(self, quantity: Quantity) -> WorstPull | None:
        """Largest pull of this quantity; None if there is none."""
        found = [
            (feature, context, index, one)
            for feature, contexts in self.moments.items()
            for context, bins in contexts.items()
            for index, moments in enumerate(bins)
            if (one := getattr(moments, quantity)).pull is not None
        ]
        if not found:
            return None
        feature, context, index, one = max(found, key=lambda item: abs(item[3].pull))
        return WorstPull(feature, context, index, one, len(found), corrected_p_value(one.pull, len(found)))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, without NaN."""
        worst = {quantity: self.worst(quantity) for quantity in get_args(Quantity)}
        return asdict(self) | {
            "output": str(self.output),
            "pictures": [str(path) for path in self.pictures],
            "worst": {name: None if one is None else asdict(one) for name, one in worst.items()},
        }

    def __str__(self) -> str:
        """Tables for the terminal."""
        pictures = ", ".join(path.name for path in self.pictures)
        parts = [_sample_lines(self), _classifier_lines(self.classifier), _distance_lines(self), _bin_lines(self)]
        parts += [_deviation_lines(self.deviations), _memory_lines(self.memorization)]
        text = "\n\n".join("\n".join(part) for part in parts if part)
        return f"{text}\n\n{self.output}: all numbers; pictures: {pictures}"


def _sample_lines(found: Validation) -> list[str]:
    lines = []
    for label, one in (("generated", found.generated), ("reference", found.reference)):
        sizes = f"{one.n} events, sum of weights {number(one.sum_w, 6)}, n_eff {one.n_eff:.0f}"
        lines.append(f"{label}: {', '.join(one.files)}, tree '{one.tree}', weight '{one.weight}': {sizes}")
    known = "unknown" if found.training_n_eff is None else f"{found.training_n_eff:.0f}, in the errors below"
    lines.append(f"n_eff of the generator's training sample: {known}")
    return [*lines, f"events that share their conditions are known by: {found.twins}"]


def _classifier_lines(test: ClassifierTest) -> list[str]:
    rows = (("classifier", test.separation), ("floor", test.floor))
    refused = [f"{name} refused: {reason}" for name, reason in test.refused.items()]
    return [f"{label:<10}  {_separation(one)}" for label, one in rows] + refused


def _separation(one: Separation | None) -> str:
    if one is None:
        return "-"
    jsd = "-" if one.jsd is None else with_error(one.jsd, one.jsd_spread)
    return f"AUC {with_error(one.auc, one.auc_error)}  JSD {jsd}"


def _distance_lines(found: Validation) -> list[str]:
    rows = [["feature", "KS", "p", "W1", "p", "energy", "p"]]
    for name, one in found.distances.items():
        rows.append([name, *(text for d in (one.ks, one.wasserstein, one.energy) for text in _distance(d))])
    rows.append(["sliced", "", "", *_distance(found.sliced), "", ""])
    return aligned(rows)


def _distance(one: Distance) -> tuple[str, str]:
    return number(one.value, 3), f"{one.p_value:.3f}"


def _bin_lines(found: Validation) -> list[str]:
    rows = [["largest pull", "feature", "in bin", "generated", "reference", "ratio", "pull", "p (of all)"]]
    for quantity in get_args(Quantity):
        if (worst := found.worst(quantity)) is None:
            continue
        one = worst.comparison
        where = f"{worst.context} {worst.bin + 1}/{len(found.moment_bins[worst.context])}"
        values = [number(one.generated), number(one.reference), with_error(one.ratio, one.ratio_error)]
        pull = "-" if one.pull is None else f"{one.pull:+.1f}"
        rows.append([quantity.replace("_", "-"), worst.feature, where, *values, pull, number(worst.p_value, 2)])
    return aligned(rows)


def _deviation_lines(deviations: dict[str, Deviation]) -> list[str]:
    rows = [["efficiency above the quantile", *deviations]]
    for label, name in (
        ("mean |ratio - 1|", "mean"),
        ("by accident", "expected"),
        ("largest", "worst"),
        ("mean |difference|", "absolute"),
    ):
        values = [getattr(one, name) for one in deviations.values()]
        rows.append([label, *("-" if value is None else f"{100 * value:.1f} %" for value in values)])
    return aligned(rows)


def _memory_lines(memory: Memorization | None) -> list[str]:
    if memory is None:
        return []
    ratio = with_error(memory.median.ratio, memory.median.ratio_error)
    shares = f"{100 * memory.zero_generated:.2f} % copied (reference {100 * memory.zero_reference:.2f} %)"
    text = f"nearest training event: median distance {ratio} of the reference's, KS p {memory.ks.p_value:.3f}, {shares}"
    return [text]
