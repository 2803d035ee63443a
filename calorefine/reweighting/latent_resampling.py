r"""Corrected events without weights: the correction is moved into the latent space, or events are thrown away.

A generator maps noise z at context c to x = G(z, c), so that the factor r(x | c) of an event is a weight on its noise.
`RefinedSimulator` samples the noise with this weight by acceptance and rejection: it draws z again and again until a
uniform number is below r(G(z, c), c) / r_max.  Every condition gets its event, and the events have unit weight.  This
needs no second network on the noise as in the reference, and no latent space of any special form.

A cut of the reweighter (`columns.cut`) is in terms of a file's branches and can't be applied here: a warning tells.

`accepted` does the same with a finished sample, which it makes smaller.

Reference: Winterhalder, Bellagente and Nachman, arXiv:2106.00792 (latent space refinement).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calorefine import keys
from calorefine.errors import CalorefineWarning, ConfigError
from calorefine.events import Events
from calorefine.reweighting.reweighter import Reweighter
from calorefine.simulator import AnySimulator
from calorefine.stats import FloatArray

MOST_ATTEMPTS = 1000


class RefinedSimulator:
    """A simulator with a reweighter's correction, whose events need no weight.

    Args:
        simulator: the generator.
        reweighter: learned with it, conditional.

    Attributes:
        n_sampled: events generated so far.
        n_attempts: draws of the noise that they took.
        n_outside: events outside of the reweighter's domain, where nothing is known: their first draw stays.
        n_above: accepted draws with a factor above the reweighter's `largest`, which counted as that.
        n_given_up: events that took `MOST_ATTEMPTS` draws; they hold the last one.

    Raises:
        ConfigError: the reweighter is a joint one, or of other columns.
    """

    def __init__(self, simulator: AnySimulator, reweighter: Reweighter) -> None:
        """Check that they belong together."""
        if not reweighter.conditional:
            raise ConfigError("reweighter: a joint one found, expected a conditional one: conditions are given here")
        for group in ("features", "context"):
            names, expected = list(getattr(reweighter.columns, group)), list(getattr(simulator.columns, group))
            if names != expected:
                raise ConfigError(f"reweighter: {group} {names} found, expected {expected} as in the simulator")
        reweighter.require_same_features(simulator.columns, "reweighter")
        self.simulator, self.reweighter, self.columns = simulator, reweighter, simulator.columns
        if reweighter.columns.cut:
            msg = f"reweighter: it was learned with the cut '{reweighter.columns.cut}', which sampling doesn't apply: "
            msg += "events outside of it are corrected as well, by what the ones within have"
            warnings.warn(msg, CalorefineWarning, stacklevel=2)
        self.n_sampled = self.n_attempts = self.n_outside = self.n_above = self.n_given_up = 0

    def sample(
        self,
        context: Mapping[str, ArrayLike],
        *,
        seed: int,
        key: keys.KeyArray | None = None,
        event_key: keys.KeyArray | None = None,
        n_per_event: int = 1,
    ) -> dict[str, NDArray[Any]]:
        """Generate corrected events at the given conditions; result and errors as `Simulator.sample`.

        The values of an event are a function of its keys, `seed` and the number of the copy alone.

        Args:
            context: arrays (n,) by name of context column.
            seed: seed of the latent noise and of the decisions.
            key: (n,) uint64; the row number serves if it is left out.
            event_key: (n,) uint64, by which the reweighter knows the events that it was trained on; `key`, if left out.
            n_per_event: how many events to generate at each condition.
        """
        if key is None:
            key = keys.make_keys([np.arange(max((np.size(values) for values in context.values()), default=0))])
        out = self.simulator.sample(context, seed=seed, key=key, n_per_event=n_per_event)
        table = {name: np.repeat(np.asarray(context[name]), n_per_event) for name in self.columns.context}
        event = np.repeat(key if event_key is None else event_key, n_per_event)
        trial = keys.combine(np.repeat(key, n_per_event), np.tile(np.arange(n_per_event), len(key)))
        left = np.flatnonzero(~self._accepted(out, table, event, trial, seed))
        self.n_sampled += len(event)
        self.n_attempts += len(event)
        self.n_outside += int(np.sum(~self.reweighter.in_domain(self._encoded(table, len(event)))))
        for attempt in range(1, MOST_ATTEMPTS):
            if len(left) == 0:
                return out
            again = keys.combine(trial[left], attempt)
            conditions = {name: values[left] for name, values in table.items()}
            drawn = self.simulator.sample(conditions, seed=seed, key=again)
            for name, values in drawn.items():
                out[name][left] = values
            self.n_attempts += len(left)
            left = left[~self._accepted(drawn, conditions, event[left], again, seed)]
        self.n_given_up += len(left)
        return out

    def _accepted(
        self,
        drawn: Mapping[str, NDArray[Any]],
        table: Mapping[str, NDArray[Any]],
        event_key: keys.KeyArray,
        trial: keys.KeyArray,
        seed: int,
    ) -> NDArray[np.bool_]:
        """Which of the drawn events (n,) to keep."""
        x = self.columns.encode_features(drawn)
        context = self._encoded(table, len(x))
        factor = self.reweighter.factors(Events(x, context, np.ones(len(x)), event_key, event_key))
        kept = accepted(factor, trial, largest=self.reweighter.largest, seed=seed, purpose="refine")
        kept |= ~self.reweighter.in_domain(context)
        self.n_above += int(np.sum(kept & (factor > self.reweighter.largest)))
        return kept

    def _encoded(self, table: Mapping[str, NDArray[Any]], n: int) -> NDArray[np.float32]:
        """Encoded context (n, c)."""
        return self.columns.encode_context(table, strict=False) if table else np.zeros((n, 0), np.float32)

    def __str__(self) -> str:
        """Report for the terminal."""
        largest = self.reweighter.largest
        given_up = f", {self.n_given_up} given up after {MOST_ATTEMPTS} draws" if self.n_given_up else ""
        return (
            f"corrected without weights: {1 / max(self.efficiency, 1e-12):.2f} draws for an event, {self.n_outside} "
            f"events outside of the correction's domain, {self.n_above} above the largest factor {largest:.3g}"
            f"{given_up}"
        )

    @property
    def efficiency(self) -> float:
        """Events per draw so far."""
        return self.n_sampled / max(self.n_attempts, 1)


def accepted(factor: FloatArray, key: keys.KeyArray, *, largest: float, seed: int, purpose: str) -> NDArray[np.bool_]:
    """Keep events with a probability proportional to their factor: they have unit weight afterwards.

    Args:
        factor: (n,) not negative.
        key: (n,) uint64; the decision is a function of it and the seed.
        largest: factor at which an event is kept for certain; larger ones count as this.
        seed: of the decisions.
        purpose: what they are for: those for other purposes are independent.

    Returns:
        (n,) whether to keep it.
    """
    return np.asarray(keys.uniform(keys.stream(key, purpose, seed=seed)) * largest < factor)
