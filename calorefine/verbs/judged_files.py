"""What `calorefine validate` takes from files beside their events: sizes, and what they say of their generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calorefine.errors import CheckpointError
from calorefine.io.provenance import digest
from calorefine.io.sample import WeightedFiles
from calorefine.stats import FloatArray
from calorefine.twosample.results import SampleNumbers


def sample_numbers(files: WeightedFiles, weight: FloatArray) -> SampleNumbers:
    """Files, tree, number of events and sums of their weights (n,)."""
    return SampleNumbers([str(path) for path in files.source.paths], **files.numbers(weight))


def training_n_eff(provenance: dict[str, Any]) -> float | None:
    """Effective number of training events, of the signed weights where positive ones were made of them."""
    training = provenance.get("training", {})
    n_eff = training.get("n_eff_signed") or training.get("n_eff")
    return None if n_eff is None else float(n_eff)


def require_made_with(checkpoint: Path, generated: WeightedFiles) -> None:
    """Refuse a checkpoint that the generated events are not of.

    Raises:
        CheckpointError: they aren't, or don't tell.
    """
    told = generated.provenance
    if (made_with := told.get("checkpoint_sha256") or "") == digest(checkpoint):
        return
    wanted = f"{told['checkpoint']} ({made_with[:12]}), with which" if made_with else "none: it isn't told with which"
    msg = f"checkpoint: {checkpoint} ({digest(checkpoint)[:12]}) found, expected {wanted} {generated.source} was made"
    raise CheckpointError(msg)
