"""`calorefine compare --leave-out`: what enforcing a statistic is worth, found by leaving it out.

Each configuration that enforces statistics (`enforce`) is trained once more for each of them, without it.  The table
tells how far all statistics of each generator are from the reference: a statistic that drifts when it is left out is
one that the critics alone don't get right.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from calorefine import stats
from calorefine.errors import ConfigError
from calorefine.fit.command import lightning
from calorefine.models.auxiliary import Enforced, records
from calorefine.models.quantities import Quantities
from calorefine.pages.page import Table
from calorefine.text import with_error
from calorefine.twosample.drift import Drift, drift
from calorefine.twosample.pair import Samples

OPTION = "enforce"
ABOUT_DRIFTS = (
    "Drift: the difference of an enforced statistic from the reference's, in widths of its quantity there; of a width "
    "the relative one. Its error holds the statistics of generated, reference and training sample, not how much "
    "trainings from other random numbers differ. A statistic that drifts where it is left out is one that the critics "
    "alone don't get right."
)


@dataclass(frozen=True)
class Drifts:
    """How far the enforced statistics of one generator are from the reference.

    Attributes:
        generator: its name.
        left_out: the statistic that it was trained without; None if it is the one with all.
        drifts: of each statistic, in widths of its quantity.
    """

    generator: str
    left_out: str | None
    drifts: dict[str, Drift]


@dataclass(frozen=True)
class Plan:
    """What a generator enforces, and what it is trained without.

    Attributes:
        enforced: the statistics of the configuration, the one left out included.
        left_out: that one, if any.
        options: further options of `lightning fit`.
    """

    enforced: list[Enforced]
    left_out: Enforced | None = None
    options: tuple[str, ...] = ()


def plans(name: str, config: str | None, options: Sequence[str]) -> dict[str, Plan]:
    """Names and plans of a configuration's generators: as it is, and without each of its statistics.

    Args:
        name: of the generator.
        config: its configuration, None if it is loaded.
        options: further options of `lightning fit`.

    Returns:
        Nothing but for a configuration that enforces something.
    """
    enforced = _enforced(config, options) if config else []
    found = {name: Plan(enforced)} if enforced else {}
    for k, statistic in enumerate(enforced):
        others = [_given(other) for other in [*enforced[:k], *enforced[k + 1 :]]]
        changed = (f"--model.init_args.{OPTION}={json.dumps(others)}",)
        found[f"{name}_without_{k + 1}_{re.sub(r'[^0-9A-Za-z]+', '_', str(statistic))}"] = Plan(
            enforced, statistic, changed
        )
    return found


def require_enforced(found: Mapping[str, Plan]) -> None:
    """Refuse to leave something out where nothing is enforced.

    Raises:
        ConfigError: no configuration enforces anything.
    """
    if not found:
        msg = f"leave_out: none of the models has a configuration with `{OPTION}`, expected one to be trained"
        raise ConfigError(f"{msg}, with statistics such as {OPTION}: [{{width: e_over_p}}]")


def _enforced(config: str, options: Sequence[str]) -> list[Enforced]:
    quiet = ["--trainer.enable_progress_bar", "false", "--threads", "1"]
    model: Any = lightning(["-c", config, *options, *quiet], run=False).model
    return records(Enforced, model.options.get(OPTION) or [])


def _given(enforced: Enforced) -> dict[str, Any]:
    """A statistic as in a configuration."""
    return {k: v for k, v in vars(enforced).items() if v is not None}


def drifts(name: str, plan: Plan, samples: Samples, training_n_eff: float | None) -> Drifts:
    """Drifts of the statistics of one generator's sample.

    Args:
        name: of the generator.
        plan: what it enforces.
        samples: generated events and the reference, with weights of any sign.
        training_n_eff: effective number of training events, if known.
    """
    generated, reference = samples.generated, samples.reference
    texts = list(dict.fromkeys(statistic.expression for statistic in plan.enforced))
    quantities = Quantities(dict.fromkeys(texts, OPTION), samples.columns)
    values = [
        quantities.values(texts, torch.from_numpy(part.x), torch.from_numpy(part.context)).numpy()
        for part in (generated, reference)
    ]
    learned = stats.n_eff(reference.weight) / training_n_eff if training_n_eff else 0.0
    found = {}
    for statistic in plan.enforced:
        simulated, target = (part[:, texts.index(statistic.expression)] for part in values)
        found[str(statistic)] = drift(statistic.kind, (simulated, generated), (target, reference), training=learned)
    return Drifts(name, str(plan.left_out) if plan.left_out else None, found)


def table_of(rows: Sequence[Drifts]) -> Table:
    """The table of the page."""
    columns: dict[str, Callable[[Drifts], str]] = {
        "generator": lambda row: row.generator,
        "left out": lambda row: row.left_out or "nothing",
    }
    for name in dict.fromkeys(name for row in rows for name in row.drifts):
        columns[name] = partial(_cell, name=name)
    return Table.of("Drift of enforced statistics, in widths of their quantities in the reference", rows, columns)


def _cell(row: Drifts, *, name: str) -> str:
    found = row.drifts.get(name)
    return "" if found is None else with_error(found.value, found.error)
