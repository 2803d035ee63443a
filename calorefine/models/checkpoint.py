"""A recipe with its trained networks, from a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from calorefine.data.module import Prepared
from calorefine.errors import CheckpointError
from calorefine.io.saved import read_saved, rebuilding, require_numbers
from calorefine.models.base import CHECKPOINT_FORMAT, CHECKPOINT_KEY, GenerativeModel, recipe_named

NUMBERS = ("domain", "mean_weight", "support", "columns")  # of a checkpoint, beside its tensors


def load_model(path: Path) -> GenerativeModel:
    """Load a model from a checkpoint of `lightning fit` or `Simulator.save`; errors as of `rebuilt`."""
    expected = "one written by 'lightning fit'"
    content = read_saved(path, CHECKPOINT_KEY, what="checkpoint of calorefine", expected=expected)
    with rebuilt(content, path) as (model, _):
        return model


@contextmanager
def rebuilt(
    content: Mapping[str, Any], path: Path, *, models: Iterable[type[GenerativeModel]] = ()
) -> Iterator[tuple[GenerativeModel, Mapping[str, Any]]]:
    """A model and its description from the content of a file, of which no code is run; what fails here is its fault.

    Args:
        content: as `read_saved` gives it.
        path: of the file, for messages.
        models: recipes from outside of calorefine; those that have been imported are known without.

    Raises:
        CheckpointError: it was written by a newer version, doesn't fit together, or holds a recipe that is not known:
            nothing is imported because a checkpoint names it.
    """
    with rebuilding(path, "checkpoint"):
        spec, state = content[CHECKPOINT_KEY], content["state_dict"]
        if spec["format"] != CHECKPOINT_FORMAT:
            msg = f"{path}: holds a '{spec['model']}' in format {spec['format']}, expected format "
            raise CheckpointError(f"{msg}{CHECKPOINT_FORMAT}; it was written by another version of calorefine")
        require_numbers(path, state, "state_dict")
        require_numbers(path, {name: spec.get(name) for name in NUMBERS}, CHECKPOINT_KEY)
        model = recipe_named(spec["model"], models, where=path)(**spec["init_args"])
        model.prepare(Prepared.from_dict(spec, state))
        model.load_state_dict(state)
        yield model, spec
