"""What `lightning predict` writes: one generated event for each held-out one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from calorefine.data.module import EventDataModule
from calorefine.io.writer import write_tree
from calorefine.simulator import Simulator, provenance


def write_predicted(checkpoint: Path, data: EventDataModule, parts: Sequence[torch.Tensor]) -> Path:
    """Write generated events beside their checkpoint, as ``<its name>_predicted.root``; an earlier file is replaced.

    The tree has the features, and of the held-out events whose conditions they are `weight` and the 64-bit `key` that
    tells events apart; the order is that of the files.

    Args:
        checkpoint: of the generator.
        data: the data module, set up.
        parts: (n, d) events in physical units, in the order of its held-out ones.
    """
    output, simulator = checkpoint.with_name(f"{checkpoint.stem}_predicted.root"), Simulator.load(checkpoint)
    features = simulator.columns.decode_features(torch.cat(list(parts)).cpu().numpy())
    with write_tree(output, data.source.tree, overwrite=True) as tree:
        tree.extend({**features, "weight": data.validation.weight, "key": data.validation.key})
        tree.finish(provenance(simulator, checkpoint) | {"conditions": [path.name for path in data.source.paths]})
    return output
