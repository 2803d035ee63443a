"""Options of a run, kept in its checkpoints: a training that goes on has the same ones, or would be another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]  # neither py.typed nor stubs exist
from pytorch_lightning.cli import LightningArgumentParser

from calorefine.errors import CheckpointError

OPTIONS_KEY = "calorefine_options"
MAY_DIFFER = (  # paths, what is logged, and where it runs; of data the digest is compared, of epochs their number
    *("config", "runs", "threads", "ckpt_path", "weights_only", "data.files", "data.cache_dir", "data.max_memory_gb"),
    *("trainer.max_epochs", "trainer.default_root_dir", "trainer.logger", "trainer.callbacks", "trainer.profiler"),
    *("trainer.log_every_n_steps", "trainer.enable_", "trainer.num_sanity_val_steps", "trainer.detect_anomaly"),
    *("trainer.accelerator", "trainer.strategy", "trainer.devices", "trainer.num_nodes", "trainer.plugins"),
)
MOST_NAMED = 5


def options(parser: LightningArgumentParser, config: Any) -> dict[str, Any]:
    """All options of a run by their full names, as plain containers."""
    return _flat(yaml.safe_load(parser.dump(config, skip_none=False, skip_validation=True)))


def require_same_options(checkpoint: str, content: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint, of this content, with other options than those of its run.

    Raises:
        CheckpointError: an option differs, or the checkpoint doesn't tell the options.
    """
    before = content.get(OPTIONS_KEY)
    if before is None:
        msg = f"--ckpt_path {checkpoint}: doesn't tell the options of its run, expected a checkpoint of 'lightning fit'"
        raise CheckpointError(f"{msg} of this version; start anew")
    names = [name for name in {**before, **now} if not name.startswith(MAY_DIFFER)]
    changed = [name for name in names if before.get(name) != now.get(name)]
    if changed:
        told = [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in changed[:MOST_NAMED]]
        told += [f"and {len(changed) - MOST_NAMED} more"] if len(changed) > MOST_NAMED else []
        msg = f"--ckpt_path {checkpoint}: its run had other options: {'; '.join(told)}"
        raise CheckpointError(f"{msg}; expected the same, or no --ckpt_path, to start anew")


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Values of nested dictionaries by the names that lead to them."""
    if not isinstance(tree, dict) or not tree:
        return {name: tree}
    parts = [_flat(below, f"{name}.{part}" if name else part) for part, below in tree.items()]
    return {key: value for part in parts for key, value in part.items()}
