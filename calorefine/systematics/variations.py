"""Where the variations of the observables come from: further weights of the nominal sample, or further samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from calorefine.errors import ConfigError
from calorefine.events import Columns
from calorefine.io.provenance import digest, read_provenance
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import Source, expanded
from calorefine.observables import Measured, Observable, Weights, measure
from calorefine.observables.reading import names_of
from calorefine.stats import FloatArray
from calorefine.systematics.closure import is_sum
from calorefine.systematics.paired import own_noise
from calorefine.systematics.systematics import ObservableBins

Noise = Literal["measured", "shared", "own"]
ENSEMBLE = ("calibration", "training")  # sources whose variations are members of the nominal generator's ensemble
UNKNOWN = (
    "nothing tells which events of the members go together (no key branches, no record of the same conditions), "
    "so that generated statistics are added to their spread in full: twice, if each has noise of its own; say so by "
    "noise: own, or noise: shared"
)


@dataclass(frozen=True)
class Variations:
    """Variations of one source, as weights of the nominal events or as files of other events.

    Args:
        weights: branches or expressions of the nominal file; an array branch (`weight_replica`) gives one variation for
            each of its entries.  Each is a complete weight.
        files: files with one variation each; paths or globs.  Their weight is named as the nominal one's.
    """

    weights: str | list[str] | None = None
    files: str | list[str] | None = None

    def __post_init__(self) -> None:
        """Check that there is one of them."""
        if bool(self.weights) == bool(self.files):
            raise ConfigError("variations: expected either weights of the nominal file, or files of other events")

    @property
    def columns(self) -> list[Weights]:
        """Weights to read from the nominal file."""
        given = [self.weights] if isinstance(self.weights, str) else self.weights or []
        return [Weights(text) for text in given]


def measured_in(sample: WeightedFiles, observables: Mapping[str, Observable], tree: str) -> Measured:
    """Observables in these events; `tree` is the name of the tree where none is given."""
    return measure(sample.within(tree).source, observables, weights=[Weights(sample.weight)])


class Variables:
    """Observables of the nominal sample, with the values of every variation.

    Args:
        source: nominal files.
        observables: by name.
        weight: nominal weight.
        sources: name to its variations.
        columns: that tell of showers in files of variations, which don't themselves.
    """

    def __init__(
        self,
        source: Source,
        observables: Mapping[str, Observable],
        weight: str,
        sources: Mapping[str, Variations],
        columns: Columns | None = None,
    ) -> None:
        """Measure the nominal file once, and each other file."""
        self.source, self.weight, self.columns = source, weight, columns
        every = [Weights(weight), *(column for variations in sources.values() for column in variations.columns)]
        self.nominal = measure(source, observables, weights=every)
        further = iter(self.nominal.values[1:])
        self.files: dict[str, list[str]] = {}
        self.rows: dict[str, FloatArray] = {}
        for name, variations in sources.items():
            count = len(names_of(source, variations.columns))  # an array branch gives several
            rows = self._from_files(name, variations.files) if variations.files else islice(further, count)
            self.rows[name] = np.stack(list(rows))

    def _from_files(self, name: str, files: str | list[str]) -> Iterator[FloatArray]:
        """Values (n,) in the same cells, file by file."""
        paths = expanded(files)
        nominal = {path.resolve() for path in self.source.paths}
        if clash := [path for path in paths if path.resolve() in nominal]:
            raise ConfigError(f"{name}: {clash[0]} is the nominal sample itself, expected files of its variations")
        self.files[name] = [str(path) for path in paths]
        for sample in self.samples(name):
            if name in ENSEMBLE:
                self._require_same_data(name, sample)
            yield measured_in(sample, self.nominal.observables, self.source.tree).values[0]

    def _require_same_data(self, name: str, sample: WeightedFiles) -> None:
        """Refuse events of a generator that was trained on other data than the nominal one, if that is told."""
        nominal, other = (
            provenance.get("training", {}).get("rows_digest")
            for provenance in (read_provenance(self.source.paths[0]), sample.provenance)
        )
        if nominal and other and nominal != other:
            msg = f"{name}: {sample.source} is of a generator that was trained on other data than that of {self.source}"
            raise ConfigError(f"{msg}; expected events of members of one ensemble")

    def samples(self, name: str) -> list[WeightedFiles]:
        """The files of a source's variations; none if these are weights."""
        tree = self.source.tree
        return [WeightedFiles(path, tree, self.weight).within(tree, self.columns) for path in self.files.get(name, [])]

    def retrained(self, name: str) -> bool:
        """Whether a source's variations are of other trainings than the nominal sample, as far as the files tell."""
        checkpoint = read_provenance(self.source.paths[0]).get("checkpoint_sha256")
        others = {sample.provenance.get("checkpoint_sha256") for sample in self.samples(name)}
        return bool(others - {checkpoint}) or (bool(others) and checkpoint is None)

    def own_noise(self, noise: Noise = "measured") -> tuple[FloatArray | None, list[str]]:
        """Generated statistics (n, n) that the spread of the members holds already, and what to say of it.

        Args:
            noise: whether members share the latent noise with each other, have their own, or their events tell.
        """
        members = self.samples("calibration" if "calibration" in self.rows else "training")
        if len(members) < 2 or noise == "shared":
            return None, []
        statistics = self.nominal.statistics
        own = statistics if noise == "own" else own_noise(members, self.nominal.observables)
        if own is None:
            return None, [f"WARNING: {UNKNOWN}"]
        variances = np.diag(own), np.diag(statistics)
        part = float(np.mean(np.divide(*variances, out=np.zeros(len(own)), where=variances[1] > 0)))
        return own, [f"generated statistics: {part:.0%} is in the spread of the members already, and not added again"]

    def provenance(self) -> dict[str, Any]:
        """Files and their digests."""
        files = {"nominal": [str(path) for path in self.source.paths], **self.files}
        return {name: {path: digest(Path(path)) for path in paths} for name, paths in files.items()}


def bins_of(measured: Measured) -> dict[str, ObservableBins]:
    """Bins of each observable."""
    return {
        name: ObservableBins(o.edge_array, str(o.title), o.unit or "", is_sum(o), o.per_bin)
        for name, o in measured.observables.items()
    }
