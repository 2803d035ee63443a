"""Generated, reweighted and reference events of the report: their files, and how each names the columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calorefine.errors import BranchError, ConfigError, nearest
from calorefine.events import Column, Columns, unit_of
from calorefine.io.expressions import branches
from calorefine.io.formats import open_source
from calorefine.io.provenance import read_provenance
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import Source
from calorefine.systematics.variations import Variations
from calorefine.twosample.pair import file_expressions

REPLICAS = "weight_replica"
REFERENCE = "reference"
Sources = Mapping[str, tuple[Source, str]]


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

    def sources(self) -> dict[str, tuple[Source, str]]:
        """Files and weight of each sample that is there, the reference last."""
        given: list[tuple[str, Any, str, str]] = [
            ("generated", self.generated, self.tree, "none"),
            ("reweighted", self.weighted, self.tree, self.weight),
        ]
        if self.reference:
            given.append(("reference", self.reference.files, self.reference.tree or self.tree, self.reference.weight))
        return {name: (open_source(files, tree), weight) for name, files, tree, weight in given if files}

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
        one = next(iter(sources.values()))[0]
        raise ConfigError(f"{one}: has no provenance that names its features; name them by the option features")
    texts = {name: _expressions(described, source, name) for name, (source, _) in sources.items()}
    columns, lacking = {}, []
    for name in names or known:
        own = {sample: texts[sample].get(name, name) for sample in sources}
        without = [sample for sample, text in own.items() if not _has(sources[sample][0], text)]
        if without and not names and described is not None and name in described.context:
            lacking.append(f"context '{name}' isn't in the {' and '.join(without)} events")
        elif without:
            there = sources[without[0]][0]
            raise BranchError(f"{there}: there is no branch '{name}'{nearest(name, there.branch_names())}")
        else:
            columns[name] = Shown(unit_of(name, known.get(name, Column())), own)
    return columns, lacking


def _described(sources: Sources) -> Columns | None:
    """Columns that the generated files were made with, if one of them tells."""
    for name, (source, _) in sources.items():
        provenance = read_provenance(source.paths[0])
        if name != REFERENCE and "columns" in provenance:
            return Columns.from_dict(provenance["columns"])
    return None


def _expressions(columns: Columns | None, source: Source, sample: str) -> dict[str, str]:
    """Expressions of the columns in one sample."""
    if columns is None:
        return {}
    if sample == REFERENCE:
        return columns.expressions("features", "context")
    names, by_name = set(source.branch_names()), "columns" in read_provenance(source.paths[0])
    own = file_expressions(columns, "features", names, by_name=by_name)
    return own | file_expressions(columns, "context", names, by_name=False)


def _has(source: Source, text: str) -> bool:
    return set(branches(text)) <= set(source.branch_names())
