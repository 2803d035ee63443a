r"""Quantities of events in physical units, with a gradient: what critics, regressions and enforced statistics go by.

A quantity q is an expression of features and context (`e_over_p * p_gev`, `sum(cells)`).  Networks get it as
(q - m) / s, with its weighted mean m and standard deviation s in the training sample: however steep the preprocessing
of its features is, a critic of it has an input of width 1, and the gradient penalty a meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from calorefine import stats
from calorefine.data.column_transforms import row_blocks
from calorefine.errors import ConfigError, ValueRangeError
from calorefine.events import Columns, Events
from calorefine.io import tensors
from calorefine.io.reductions import branches


class Quantities:
    """Expressions of the columns of a dataset.

    Args:
        options: expression to the option that names it.
        columns: description of the data.

    Raises:
        ConfigError: an expression can't be evaluated from the columns, or has no gradient.
    """

    def __init__(self, options: Mapping[str, str], columns: Columns) -> None:
        """Check the expressions."""
        self.options, self.columns = dict(options), columns
        elements = {name.replace(",", "]["): place for place, name in enumerate(columns.feature_names)}
        for text, option in self.options.items():
            tensors.check(text, {**columns.features, **columns.context, **elements}, option=option)
        self._needed = {name for text in self.options for name in branches(text)}
        self._elements = {name: elements[name] for name in self._needed & elements.keys()}

    def values(self, texts: Sequence[str], x: Tensor, context: Tensor) -> Tensor:
        """Quantities (..., B, k), float64, of events (..., B, d) and encoded context (..., B, c), in physical units."""
        table = self._table(x, context)
        return torch.stack([tensors.evaluate(text, table) for text in texts], dim=-1)

    def moments(self, events: Events) -> Tensor:
        """Weighted means and standard deviations (q, 2) of all quantities, float64.

        Raises:
            ValueRangeError: a value is NaN or infinite.
            ConfigError: a variance is not positive: a constant, or weights that leave nothing.
        """
        texts = list(self.options)
        blocks = row_blocks(len(events), self.columns.n_features)
        parts = [self.values(texts, *map(torch.from_numpy, (events.x[at], events.context[at]))) for at in blocks]
        values = torch.cat(parts).numpy()
        for text, column in zip(texts, values.T, strict=True):
            self._require_varying(text, column, events.weight)
        variance = np.diag(stats.covariance(values, events.weight))
        return torch.from_numpy(np.stack([stats.mean(values, events.weight), np.sqrt(variance)], axis=1))

    def _require_varying(self, text: str, values: stats.FloatArray, weight: stats.FloatArray) -> None:
        where = f"{self.options[text]}: '{text}'"
        if n_bad := int(np.sum(~np.isfinite(values))):
            raise ValueRangeError(f"{where} is NaN or infinite for {n_bad} of {len(values)} training events")
        variance = float(stats.covariance(values[:, None], weight)[0, 0])
        if variance <= 1e-12 * float(stats.mean(values, weight)) ** 2:
            msg = f"{where} has the weighted variance {variance:.3g} in the training sample"
            raise ConfigError(f"{msg}, expected a quantity that varies")

    def _table(self, x: Tensor, context: Tensor) -> dict[str, Tensor]:
        """Columns (..., B, 1) and arrays (..., B, k) by name, with the offsets that `Events` are without."""
        table, columns, first = {}, self.columns, 0
        for name in self._needed & columns.feature_columns.keys():
            table[name] = x[..., columns.slices[name]].double() + (columns.feature_columns[name].offset or 0.0)
        table |= {name: x[..., place, None].double() for name, place in self._elements.items() if name not in table}
        for name, column in columns.context_columns.items():
            categories = column.categories or [1.0]
            encoded = context[..., first : first + len(categories)].double()
            table[name] = (encoded * encoded.new_tensor(categories)).sum(-1, keepdim=True) + (column.offset or 0.0)
            first += len(categories)
        return table
