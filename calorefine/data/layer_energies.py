r"""Energies of the layers of a shower as numbers whose density a flow can learn, and back.

They are the response :math:`R = E_{tot} / E_{inc}` less its mean at that energy, times :math:`\sqrt{E_{inc}}`, and for
each layer l but the first the logarithm of :math:`E_l` over the sum :math:`S_{l-1}` of the layers before.  They are
mapped by quantiles and whitened as other columns are; an empty layer is an atom.

On the way back no layer has an energy below the threshold T of the readout: from the last layer to the second, one with
less gives it to those before, and those before with less in all give it to the layer.  The logarithms that come to an
empty layer are therefore an interval that depends on :math:`S_l` alone, and the density of energies is exact: that of
the network values over these intervals, and where layers aren't empty

.. math::
    \left| \frac{\partial R}{\partial S_L} \right| = \frac{1}{E_{inc}} , \quad
    \left| \frac{\partial (S_l, \ln E_l / S_{l-1})}{\partial (E_l, S_{l-1})} \right| = \frac{S_l}{E_l S_{l-1}} .
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray

from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.preprocessing import ALONE, Preprocessing
from calorefine.data.shower_conditions import part_of
from calorefine.ddp import Ranks
from calorefine.events import Columns, Events

ALL = 16.0  # logarithm of a ratio of energies of which one is 0
FARTHEST = 40.0  # of normal numbers, for what has no end
_GEV = 1000.0


class LayerEnergies(Preprocessing):
    """Map of energies of layers (n, L) in MeV to network values (n, L), and back.

    Args:
        e_inc: context column of the incident energy.
        numbers: of the layers.
        threshold: of the readout, in MeV.
    """

    incident: torch.Tensor
    response: torch.Tensor

    def __init__(self, e_inc: str, numbers: list[int], threshold: float) -> None:
        """Keep the options."""
        super().__init__()
        self.e_inc, self.numbers, self.threshold = e_inc, numbers, threshold
        self.columns = ColumnTransforms()

    def fit(self, events: Events, columns: Columns) -> Self:
        """Fit the mean response and the maps, with weights; events have energies of layers (n, L) as features.

        Raises:
            ConfigError: the incident energy has no unit of energy.
        """
        place = columns.context_names.index(self.e_inc)
        offset = columns.context_columns[self.e_inc].offset or 0.0
        self.register_buffer("incident", torch.tensor([place, columns.mev(self.e_inc), offset], dtype=torch.float64))
        layers, e_inc = torch.from_numpy(events.x).double(), self.incident_of(torch.from_numpy(events.context))
        self.register_buffer("response", _quadratic(e_inc, layers.sum(1) / e_inc, events.weight))
        values = self._columns_of(layers, e_inc).numpy()
        names = ["response", *(f"energy of layer {number} over those before" for number in self.numbers[1:])]
        bounds = [None, *[(-ALL, ALL)] * (values.shape[1] - 1)]
        kinds: list[Any] = ["quantile"] * values.shape[1]
        self.columns.fit_columns(values, events.weight, kinds, names, whiten=True, bounds=bounds)
        self.spread_within = self.columns.spread_within
        return self

    def incident_of(self, context: torch.Tensor) -> torch.Tensor:
        """Incident energies (n,) in MeV, float64, of context (n, c) in physical units."""
        place, factor, offset = self.incident
        energies: torch.Tensor = (context[:, int(place)].double() + offset) * factor
        return energies

    def _mean_response(self, e_inc: torch.Tensor) -> torch.Tensor:
        log = torch.log(e_inc / _GEV)
        mean: torch.Tensor = self.response[0] + self.response[1] * log + self.response[2] * log**2
        return mean

    def _response_of(self, total: torch.Tensor, e_inc: torch.Tensor) -> torch.Tensor:
        return (total / e_inc - self._mean_response(e_inc)) * (e_inc / _GEV).sqrt()

    def _columns_of(self, layers: torch.Tensor, e_inc: torch.Tensor) -> torch.Tensor:
        """Response, and logarithms of each layer over those before (n, L), of energies of layers (n, L), float64."""
        sums = layers.cumsum(1)
        own, before = layers[:, 1:], sums[:, :-1]
        logs = torch.log(own.clamp_min(1e-30)) - torch.log(before.clamp_min(1e-30))
        logs = torch.where(own > 0, torch.where(before > 0, logs, ALL), -ALL)
        return torch.cat([self._response_of(sums[:, -1], e_inc)[:, None], logs.clamp(-ALL, ALL)], dim=1)

    def _layers_of(self, values: torch.Tensor, e_inc: torch.Tensor) -> torch.Tensor:
        """Inverse of `_columns_of`: no layer below the threshold."""
        response = values[:, 0] / (e_inc / _GEV).sqrt() + self._mean_response(e_inc)
        total = response * e_inc
        total = torch.where(total >= self.threshold, total, 0.0)
        layers = []
        for log in values[:, 1:].flip(1).T:
            own = torch.where(log > -ALL, total * torch.sigmoid(log), 0.0)
            before = torch.where(log < ALL, total * torch.sigmoid(-log), 0.0)
            all_before, none_before = own < self.threshold, before < self.threshold
            layers.append(torch.where(all_before, 0.0, torch.where(none_before, total, own)))
            total = torch.where(all_before, total, torch.where(none_before, 0.0, before))
        return torch.stack([total, *layers[::-1]], dim=1)

    def forward(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map energies (n, L) of layers to network values (n, L); the context (n, c) is in physical units."""
        values: torch.Tensor = self.columns(self._columns_of(x.double(), self.incident_of(context)))
        return values

    def inverse(self, u: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Map network values (n, L) to energies (n, L) of layers, float64: none below the threshold."""
        return self._layers_of(self.columns.inverse(u).double(), self.incident_of(context))

    @property
    def n_columns(self) -> int:
        """Number of layers L."""
        return len(self.numbers)

    @property
    def is_discrete(self) -> bool:
        """Empty layers have a probability of their own."""
        return self.columns.is_discrete

    def dequantize(
        self,
        u: torch.Tensor,
        noise: torch.Generator,
        context: torch.Tensor | None = None,  # noqa: ARG002
        ranks: Ranks = ALONE,
    ) -> torch.Tensor:
        """Spread network values (n, L) of empty layers over the intervals of their atoms."""
        return self.columns.dequantize(u, noise, ranks=ranks)

    def _seen(self, layers: torch.Tensor, e_inc: torch.Tensor) -> _Seen:
        """Columns of energies (n, L) and which of their values come to the same energies."""
        sums = layers.cumsum(1)
        total, own, before = sums[:, 1:], layers[:, 1:], sums[:, :-1]
        values = self._columns_of(layers, e_inc)
        some = torch.cat([sums[:, -1:] > 0, (own > 0) & (before > 0)], dim=1)
        shares = (self.threshold / total.clamp_min(self.threshold)).logit()
        lowest = torch.where(own > 0, shares.abs().clamp(max=ALL), -torch.inf)
        highest = torch.where(own > 0, torch.inf, shares.clamp(-ALL, ALL))
        anything = total == 0
        lowest, highest = lowest.masked_fill(anything, -torch.inf), highest.masked_fill(anything, torch.inf)
        nothing = torch.full_like(values[:, :1], -torch.inf)
        least = self._response_of(torch.full_like(e_inc, self.threshold), e_inc)[:, None]
        lowest, highest = torch.cat([nothing, lowest], dim=1), torch.cat([least, highest], dim=1)
        return _Seen(values, some, lowest, highest)

    def intervals(self, x: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Ends (2, n, L), float64, of the z that are mapped to energies (n, L), float64; as in the base."""
        seen = self._seen(x, self.incident_of(context))
        ends = self.columns.intervals(seen.values)
        bounds = [self._normal(edge, side) for side, edge in enumerate((seen.lowest, seen.highest))]
        lost = (seen.values.abs() >= ALL) & seen.some
        lost[:, 0] = False
        return torch.where(seen.some, ends, torch.stack(bounds)).masked_fill(lost, torch.inf)

    def _normal(self, edge: torch.Tensor, side: int) -> torch.Tensor:
        """Lower (0) or upper (1) end of the z of values (n, L), infinite ones included."""
        z = self.columns.intervals(edge.nan_to_num(posinf=0.0, neginf=0.0))[side]
        return torch.where(edge.isfinite(), z, edge).clamp(-FARTHEST, FARTHEST)

    def whiten(self, z: torch.Tensor) -> torch.Tensor:
        """Linear last step of the map: z (n, L) to network values (n, L)."""
        return self.columns.whiten(z)

    @property
    def log_whitening(self) -> torch.Tensor:
        """Log of the determinant () of `whiten`."""
        return self.columns.log_whitening

    def log_slope(self, x: torch.Tensor, ends: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Logs (n, L), float64, whose sum is that of |dz/dx| at energies x (n, L) of the layers that aren't empty."""
        e_inc = self.incident_of(context)
        seen, sums = self._seen(x, e_inc), x.cumsum(1)
        response = 0.5 * (e_inc / _GEV).log() - e_inc.log()
        ratios = sums[:, 1:].log() - x[:, 1:].log() - sums[:, :-1].log()
        own = torch.cat([response[:, None], ratios], dim=1) + self.columns.log_slope(seen.values, ends)
        return torch.where(seen.some, own, 0.0)

    def restore(self, state: Mapping[str, torch.Tensor]) -> Self:
        """Take over what was fitted."""
        for name in ("incident", "response"):
            self.register_buffer(name, state[name])
        self.columns.restore(part_of(state, "columns"))
        self.spread_within = self.columns.spread_within
        return self


class _Seen(NamedTuple):
    """Columns (n, L) of energies.

    Args:
        values: their numbers.
        some: where the energies tell the number; elsewhere it is one of an interval.
        lowest: lower end of that interval.
        highest: upper end.
    """

    values: torch.Tensor
    some: torch.Tensor
    lowest: torch.Tensor
    highest: torch.Tensor


def _quadratic(e_inc: torch.Tensor, response: torch.Tensor, weight: NDArray[np.float64]) -> torch.Tensor:
    """Coefficients (3,) of the weighted mean response as a polynomial of log(E_inc / GeV); fewer if E_inc is fixed."""
    log = torch.log(e_inc / _GEV).numpy()
    design = np.stack([np.ones_like(log), log, log**2], axis=1)
    share = design.T * (weight / weight.sum())
    return torch.from_numpy(np.linalg.lstsq(share @ design, share @ response.numpy(), rcond=1e-12)[0])
