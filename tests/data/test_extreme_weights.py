"""Weights of any scale train alike, and an event that outweighs all others is named."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine import Columns, EventDataModule
from calorefine.errors import CalorefineWarning

COLUMNS = Columns({"x": None}, {"p": None}, ["event"])


def prepared(root_file, weight, n=500):
    rng = np.random.default_rng(1)
    arrays = {"event": np.arange(n), "p": rng.uniform(1, 10, n), "x": rng.normal(size=n), "w": weight}
    data = EventDataModule(files=str(root_file(arrays)), tree="events", columns=COLUMNS, weights="w", batch_size=64)
    data.setup()
    return data


@pytest.mark.parametrize("power", [-112, -80, 64, 112])
def test_scale_of_the_weights_changes_nothing(root_file, power):
    """To the last bit, for powers of 2**16: weights from 1e-34 to 1e34, whose squares single precision can't hold."""
    weight = np.random.default_rng(2).uniform(0.5, 1.5, 500)
    plain, scaled = (prepared(root_file, weight * factor) for factor in (1.0, 2.0**power))
    assert 0.5 < scaled.prepared.mean_weight < 2
    assert scaled.prepared.mean_weight == plain.prepared.mean_weight
    for one, other in ((plain.network_events, scaled.network_events), (held_out(plain), held_out(scaled))):
        np.testing.assert_array_equal(one.weight.numpy(), other.weight.numpy())
    assert scaled.prepared.provenance["sum_w"] == pytest.approx(plain.prepared.provenance["sum_w"] * 2.0**power)


def held_out(data):
    (batch,) = data.predict_dataloader()
    return batch


@pytest.mark.parametrize("held", [False, True])
def test_event_that_dominates_is_named(root_file, held):
    weight = np.ones(500)
    outside = rows_held_out(root_file)
    row = next(k for k in range(500) if (k in outside) == held)
    weight[row] = 1e6
    part = "held-out" if held else "training"
    with pytest.warns(CalorefineWarning, match=rf"weights 'w', {part} events: one event, with weight 1e\+06 and x = "):
        prepared(root_file, weight)


def rows_held_out(root_file):
    """Rows that the split leaves out, by the feature's value."""
    data = prepared(root_file, np.ones(500))
    rng = np.random.default_rng(1)
    rng.uniform(1, 10, 500)
    x = rng.normal(size=500).astype(np.float32)
    return set(np.flatnonzero(np.isin(x, data.validation.x[:, 0])).tolist())
