"""What `calorefine validate` finds: records, and their tables for the terminal."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from calorefine.text import aligned, number, with_error
from calorefine.twosample.binned import BinWidths, ContextBin, Deviation, Efficiencies, corrected_p_value
from calorefine.twosample.classifier import ClassifierTest, Separation
from calorefine.twosample.comparison import Comparison
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
            `validation.COPY_ROUNDING` of their half-widths; unweighted.
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
class LatentDistance:
    """Energy distance of the codes of reference events and the prior that a model samples from, at equal contexts.

    Attributes:
        value: 0 on average where they are the same, and below by accident; in units where the prior has width 1.
        error: standard error.
    """

    value: float
    error: float


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
        latent_distance: None without a checkpoint.
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
    moments: dict[str, dict[str, list[BinWidths]]]
    efficiency_bins: dict[str, list[ContextBin]]
    efficiencies: dict[str, dict[str, Efficiencies]]
    deviations: dict[str, Deviation]
    training_n_eff: float | None
    memorization: Memorization | None
    latent_distance: LatentDistance | None

    def worst(self, quantity: Quantity) -> WorstPull | None:
        """Largest pull of this quantity; None if there is none."""
        pulls = [
            (feature, context, index, comparison)
            for feature, contexts in self.moments.items()
            for context, bins in contexts.items()
            for index, moments in enumerate(bins)
            if (comparison := getattr(moments, quantity)).pull is not None
        ]
        if not pulls:
            return None
        largest = max(pulls, key=lambda pull: abs(pull[3].pull))
        return WorstPull(*largest, len(pulls), corrected_p_value(largest[3].pull, len(pulls)))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, without NaN."""
        worst = {quantity: self.worst(quantity) for quantity in get_args(Quantity)}
        return asdict(self) | {
            "output": str(self.output),
            "pictures": [str(path) for path in self.pictures],
            "worst": {name: pull and asdict(pull) for name, pull in worst.items()},
        }

    def __str__(self) -> str:
        """Tables for the terminal."""
        pictures = ", ".join(path.name for path in self.pictures)
        parts = [_sample_lines(self), _classifier_lines(self.classifier), _distance_lines(self), _bin_lines(self)]
        parts += [
            _deviation_lines(self.deviations),
            _memory_lines(self.memorization),
            _latent_lines(self.latent_distance),
        ]
        text = "\n\n".join("\n".join(part) for part in parts if part)
        return f"{text}\n\n{self.output}: all numbers; pictures: {pictures}"


def _sample_lines(result: Validation) -> list[str]:
    lines = []
    for label, sample in (("generated", result.generated), ("reference", result.reference)):
        sizes = f"{sample.n} events, sum of weights {number(sample.sum_w, 6)}, n_eff {sample.n_eff:.0f}"
        lines.append(f"{label}: {', '.join(sample.files)}, tree '{sample.tree}', weight '{sample.weight}': {sizes}")
    known = "unknown" if result.training_n_eff is None else f"{result.training_n_eff:.0f}, in the errors below"
    lines.append(f"n_eff of the generator's training sample: {known}")
    return [*lines, f"events that share their conditions are known by: {result.twins}"]


def _classifier_lines(test: ClassifierTest) -> list[str]:
    rows = {"classifier": test.separation, "floor": test.floor}
    refused = [f"{name} refused: {reason}" for name, reason in test.refused.items()]
    return [f"{label:<10}  {_separation(separation)}" for label, separation in rows.items()] + refused


def _separation(separation: Separation | None) -> str:
    if separation is None:
        return "-"
    jsd = "-" if separation.jsd is None else with_error(separation.jsd, separation.jsd_spread)
    return f"AUC {with_error(separation.auc, separation.auc_error)}  JSD {jsd}"


def _distance_lines(result: Validation) -> list[str]:
    rows = [["feature", "KS", "p", "W1", "p", "energy", "p"]]
    for name, column in result.distances.items():
        rows.append([name, *_distance(column.ks), *_distance(column.wasserstein), *_distance(column.energy)])
    return aligned([*rows, ["sliced", "", "", *_distance(result.sliced), "", ""]])


def _distance(distance: Distance) -> tuple[str, str]:
    return number(distance.value, 3), f"{distance.p_value:.3f}"


def _bin_lines(result: Validation) -> list[str]:
    rows = [["largest pull", "feature", "in bin", "generated", "reference", "ratio", "pull", "p (of all)"]]
    for quantity in get_args(Quantity):
        if worst := result.worst(quantity):
            pair = worst.comparison
            where = f"{worst.context} {worst.bin + 1}/{len(result.moment_bins[worst.context])}"
            values = number(pair.generated), number(pair.reference), with_error(pair.ratio, pair.ratio_error)
            label = quantity.replace("_", "-")
            rows.append([label, worst.feature, where, *values, f"{pair.pull:+.1f}", number(worst.p_value, 2)])
    return aligned(rows)


def _deviation_lines(deviations: dict[str, Deviation]) -> list[str]:
    rows = [["efficiency above the quantile", *deviations]]
    names = {"mean |ratio - 1|": "mean", "by accident": "expected", "largest": "worst", "mean |difference|": "absolute"}
    for label, name in names.items():
        values = [getattr(deviation, name) for deviation in deviations.values()]
        rows.append([label, *("-" if value is None else f"{100 * value:.1f} %" for value in values)])
    return aligned(rows)


def _memory_lines(memory: Memorization | None) -> list[str]:
    if memory is None:
        return []
    ratio = with_error(memory.median.ratio, memory.median.ratio_error)
    shares = f"{100 * memory.zero_generated:.2f} % copied (reference {100 * memory.zero_reference:.2f} %)"
    distance = f"median distance {ratio} of the reference's, KS p {memory.ks.p_value:.3f}"
    return [f"nearest training event: {distance}, {shares}"]


def _latent_lines(latent: LatentDistance | None) -> list[str]:
    if latent is None:
        return []
    return [f"latent space: energy distance of reference codes from the prior {with_error(latent.value, latent.error)}"]
