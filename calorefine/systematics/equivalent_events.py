r"""How many reference events a generated sample is equivalent to: its statistical power.

With N generated events the variance of a bin is :math:`V(N) = V_\mathrm{model} + V_\mathrm{gen} N_0 / N`, where
V_gen is that of the N_0 events at hand and V_model all other sources.  n events of the reference itself, without a
generator, have :math:`V_\mathrm{gen} \, n_\mathrm{eff} / n`.  The generated sample is therefore equivalent to

.. math:: n(N) = n_\mathrm{eff} \, V_\mathrm{gen} / V(N)

reference events, which for large N ends at a plateau that the calibration sample sets: more generated events than about
ten times the plateau add nothing.  An observable's figure is that of the sums of its bins' variances, each in units of
V_gen, so that it is a harmonic mean over bins.

References: Butter et al., arXiv:2008.06545 (amplification); Matchev et al., arXiv:2002.06307.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calorefine.errors import ConfigError
from calorefine.stats import FloatArray
from calorefine.systematics.sources import GENERATED, NOISE
from calorefine.systematics.systematics import Systematics

FACTORS = (0.01, 0.1, 1.0, 10.0)


@dataclass(frozen=True)
class Power:
    """Equivalent number of reference events of one observable.

    Attributes:
        n_eff: effective number of generated events.
        n_generated: (k,) numbers of generated events.
        equivalent: (k,) numbers of reference events with the same variance.
        plateau: its limit for many generated events; infinite without another source than generated statistics, 0
            where they have no statistical error (an efficiency of 1 in every bin), so that nothing can be compared.
    """

    n_eff: float
    n_generated: FloatArray
    equivalent: FloatArray
    plateau: float

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        plateau = self.plateau if np.isfinite(self.plateau) else None
        curve = {"n_generated": self.n_generated.tolist(), "equivalent": self.equivalent.tolist()}
        return {"n_eff": self.n_eff, "plateau": plateau, **curve}


def power(systematics: Systematics, name: str, n_eff: float, *, factors: tuple[float, ...] = FACTORS) -> Power:
    """Equivalent reference events of a generated sample for one observable.

    Args:
        systematics: with the source `generated`.
        name: of the observable.
        n_eff: effective number of generated events that the observable selects.
        factors: sizes of the generated sample, over the present one.

    Raises:
        ConfigError: generated statistics are not among the sources.
    """
    if GENERATED not in systematics.added:
        raise ConfigError(f"sources {list(systematics.added)}: expected '{GENERATED}' among them")
    part = systematics.part(name)
    statistics = np.diag(systematics.covariance(GENERATED))[part]
    if NOISE in systematics.sources:  # the rest of it is in the members' spread
        statistics = statistics + np.diag(systematics.covariance(NOISE))[part]
    model = np.diag(systematics.total)[part] - statistics
    used = statistics > 0
    ratio = float(np.mean(np.maximum(model[used], 0) / statistics[used])) if used.any() else np.inf
    sizes = np.asarray(factors, np.float64)
    return Power(n_eff, n_eff * sizes, n_eff / (ratio + 1 / sizes), n_eff / ratio if ratio > 0 else np.inf)
