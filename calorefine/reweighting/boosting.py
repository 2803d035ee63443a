"""Density ratio by boosted trees: the log odds of scikit-learn's histogram gradient boosting, on positive weights.

Its trees need weights that are not negative.  Signed reference weights are replaced by their conditional mean
E[w | values], cross-fitted over other folds (`calorefine.weights.positive`), estimated for each member from the events
that it may see.  The state is kept in skops' format, which is loaded without running code from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier  # type: ignore[import-untyped]  # no stubs, no py.typed

from calorefine import trees
from calorefine.errors import CheckpointError
from calorefine.reweighting.ratio import Classifiers, Folded, RatioEstimator, WeightedRows
from calorefine.stats import FloatArray

FEATURES_PER_SPLIT = 0.5  # at random, so that repeats differ
TRUSTED = ["sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"]


class Trees(Classifiers):
    """One boosted classifier for each member.

    Args:
        classifiers: the fitted classifiers.
        bound: largest absolute log ratio.
    """

    def __init__(self, classifiers: list[HistGradientBoostingClassifier], bound: float) -> None:
        """Store them."""
        self.classifiers, self.bound, self.n_members = classifiers, bound, len(classifiers)

    def log_ratios(self, values: NDArray[np.float32], which: NDArray[np.int64]) -> FloatArray:
        """Log ratios (k, n) that k of the members give to rows (n, d)."""
        if len(values) == 0:
            return np.zeros((len(which), 0))
        odds = np.stack([self.classifiers[k].decision_function(values) for k in which])
        return np.asarray(self.bound * np.tanh(odds / self.bound))

    def state(self) -> dict[str, Any]:
        """Tensors and plain containers."""
        import skops.io  # type: ignore[import-untyped]  # no annotations

        packed = skops.io.dumps(self.classifiers)
        return {"bound": self.bound, "classifiers": torch.frombuffer(bytearray(packed), dtype=torch.uint8)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Trees:
        """Inverse of `state`.

        Raises:
            CheckpointError: it was written with a scikit-learn that this one can't read, or holds other types.
        """
        import skops.io

        packed = state["classifiers"].numpy().tobytes()
        try:
            return cls(skops.io.loads(packed, trusted=TRUSTED), state["bound"])
        except Exception as error:  # skops and scikit-learn raise many types for what they can't rebuild
            raise CheckpointError(f"boosted trees can't be rebuilt, by another version perhaps ({error})") from error


@dataclass(kw_only=True)
class BoostingRatio(RatioEstimator):
    """Density ratio by boosted trees; signed reference weights are replaced by their conditional mean.

    Args:
        n_trees: number of trees of each member.
        learning_rate: factor of each tree.
        max_leaf_nodes: size of a tree.
        min_samples_leaf: fewest events in a leaf.
    """

    members = Trees
    n_trees: int = 100
    learning_rate: float = 0.1
    max_leaf_nodes: int = 8
    min_samples_leaf: int = 200

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        self.require_positive(n_trees=self.n_trees, **self._tree_options())

    def _tree_options(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("learning_rate", "max_leaf_nodes", "min_samples_leaf")}

    def fit_members(self, generated: Folded, reference: Folded, *, seed: int) -> Trees:
        """Train one member after the other."""
        classifiers = []
        for k in range(self.n_folds * self.n_repeats):
            of_generated, of_reference = [rows.take(fold != k % self.n_folds) for rows, fold in (generated, reference)]
            classifiers.append(self._fit_one(of_generated, of_reference.with_positive_weights(), seed=seed + 1000 * k))
        return Trees(classifiers, self.bound)

    def _fit_one(
        self, generated: WeightedRows, reference: WeightedRows, *, seed: int
    ) -> HistGradientBoostingClassifier:
        half = (len(generated) + len(reference)) / 2  # equal shares: the log odds are the log ratio, without an offset
        weights = [rows.relative_weight * (half / len(rows)) for rows in (generated, reference)]
        fixed = {"max_features": FEATURES_PER_SPLIT, "early_stopping": False, "random_state": seed}
        model = HistGradientBoostingClassifier(max_iter=self.n_trees, **self._tree_options(), **fixed)
        target = np.repeat([0, 1], [len(generated), len(reference)])
        table = np.concatenate([generated.values, reference.values])
        return trees.fitted(model, table, target, np.concatenate(weights))
