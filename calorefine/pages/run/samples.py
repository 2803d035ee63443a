"""Generated, reweighted and reference events of the report: their files, and how each names the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from calorefine.errors import BranchError, ConfigError, nearest
from calorefine.events import Column, Columns, unit_of
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import Source
from calorefine.systematics.variations import Variations

REPLICAS = "weight_replica"
REFERENCE = "reference"
Sources = Mapping[str, WeightedFiles]


@dataclass(frozen=True)
class Files:
    """Which events to compare.

    Attributes:
        generated: before the correction, of weight 1; None if there is no such file.
        weighted: after it.
        reference: to compare with.
        tree: of the generated ones.
        weight: of `weighted`.
        calibration: bootstrap replicas of `weighted`; its branch `weight_replica`, if None and there is one.
    """

    generated: str | list[str] | None
    weighted: str | list[str] | None
    reference: WeightedFiles | None
    tree: str
    weight: str
    calibration: Variations | None

    def sources(self) -> dict[str, WeightedFiles]:
        """Files and weight of each sample that is there, the reference last."""
        given = {
            "generated": WeightedFiles(self.generated or "", self.tree),
            "reweighted": WeightedFiles(self.weighted or "", self.tree, self.weight),
            REFERENCE: self.reference and self.reference.within(self.tree),
        }
        return {name: sample for name, sample in given.items() if sample and sample.files}

    def replicas(self, source: Source) -> Variations | None:
        """Bootstrap replicas of the reweighted events."""
        if self.calibration is None and REPLICAS in source.branch_names():
            return Variations(weights=REPLICAS)
        return self.calibration


@dataclass(frozen=True)
class Shown:
    """A column to show.

    Attributes:
        unit: of it, if it has one.
        texts: sample to the expression that gives it there.
    """

    unit: str | None
    texts: dict[str, str]


def shown_columns(sources: Sources, names: Sequence[str] | None) -> tuple[dict[str, Shown], list[str]]:
    """Columns that all samples have.

    Args:
        sources: sample to its files and weight.
        names: columns to show; features and context that the generated files were made with, if left out.

    Returns:
        Columns by name, and what is said of a context column that a sample lacks.

    Raises:
        ConfigError: nothing tells what the features are.
        BranchError: a sample lacks a feature, or a column that is asked for.
    """
    described = _described(sources)
    known: dict[str, Column] = {}
    if described is not None:
        known = {**described.feature_columns, **described.context_columns}
    elif not names:
        first = next(iter(sources.values())).source
        raise ConfigError(f"{first}: has no provenance that names its features; name them by the option features")
    texts = {name: _expressions(described, sample, name) for name, sample in sources.items()}
    columns, lacking = {}, []
    for name in names or known:
        own = {sample: texts[sample].get(name, name) for sample in sources}
        without = [sample for sample, text in own.items() if sources[sample].lacking([text])]
        if without and not names and described is not None and name in described.context:
            lacking.append(f"context '{name}' isn't in the {' and '.join(without)} events")
        elif without:
            there = sources[without[0]]
            raise BranchError(f"{there.source}: there is no branch '{name}'{nearest(name, there.branches)}")
        else:
            columns[name] = Shown(unit_of(name, known.get(name, Column())), own)
    return columns, lacking


def _described(sources: Sources) -> Columns | None:
    """Columns that the generated files were made with, if one of them tells."""
    for name, sample in sources.items():
        if name != REFERENCE and "columns" in sample.provenance:
            return sample.columns
    return None


def _expressions(columns: Columns | None, sample: WeightedFiles, name: str) -> dict[str, str]:
    """Expressions of the columns in one sample."""
    if columns is None:
        return {}
    if name == REFERENCE:
        return columns.expressions("features", "context")
    return sample.texts(columns, "features", "context")
