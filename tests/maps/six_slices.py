"""Simulators of six slices (two charges, three ranges of |eta|), prepared on toy data and not trained."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from calorefine import Column, Columns, Events, Simulator, keys
from calorefine.data.column_transforms import ColumnTransforms
from calorefine.data.module import Prepared
from calorefine.data.support import Support
from calorefine.models import MODELS

BY = ["charge", "abs(eta)"]
EDGES = [0.0, 0.8, 1.5, 2.5]
COLUMNS = Columns(
    features={"x": Column(), "k": Column(transform="integer")},
    context={"p_gev": Column("P", branch_unit="MeV"), "eta": Column()},
    key=["run", "event"],
)
N = 300


def cut_of(charge, ring):
    """Cut of a slice, with a condition that all of them share."""
    return f"charge == {charge} && {EDGES[ring]} <= abs(eta) && abs(eta) < {EDGES[ring + 1]} && P > 500"


def simulator(recipe, *, seed=0, eta=(0.0, 0.8), columns=COLUMNS, replica=0, **options):
    """An untrained simulator whose training events had this |eta|; columns may have other options."""
    rng = np.random.default_rng(seed)
    columns = replace(columns, **options)
    p, sign = rng.uniform(1, 10, N), rng.choice([-1, 1], N)
    columns_of_context = [p, sign * rng.uniform(*eta, N)][: len(columns.context)]
    context = np.stack(columns_of_context, axis=1).astype(np.float32)
    x = np.stack([rng.normal(p / 5, 1), rng.poisson(2 + seed, N)], axis=1).astype(np.float32)
    weight, key = rng.random(N), keys.make_keys([np.arange(N)])
    torch.manual_seed(seed)
    provenance = {
        **{"files": [f"slice_{seed}.root"], "tree": "events", "weights": "w", "digest": f"{seed:064x}"},
        **{"rows_digest": f"{int(10 * eta[0]):064x}", "n_train": N, "n_validation": 30, "sum_w": float(weight.sum())},
        **{"n_eff": 200.0, "n_eff_signed": 200.0, "weights_dof": 50.0},
        "replica": {"index": replica, "seed": 0, "refit": True, "block": []},
    }
    prepared = Prepared(
        columns=columns,
        features=ColumnTransforms().fit_described(x, weight, columns.feature_columns),
        context=ColumnTransforms().fit_columns(context, weight, ["quantile"] * context.shape[1], [*columns.context]),
        domain=np.stack([context.min(axis=0), context.max(axis=0)], axis=1).astype(np.float64),
        mean_weight=float(weight.mean()),
        provenance=provenance,
        support=Support.fit(context, weight, key, columns),
    )
    model = MODELS[recipe]()
    model.prepare(prepared)
    model.take_events(Events(x, context, weight, key, key))
    return Simulator(model, model.spec)


def six(recipes=("Flow",), *, replica=0):
    """Simulators by slice, (charge, ring), of these recipes in turn."""
    places = [(charge, ring) for charge in (-1, 1) for ring in range(3)]
    return {
        place: simulator(
            recipes[number % len(recipes)],
            seed=number + 10 * replica,
            eta=(EDGES[place[1]], EDGES[place[1] + 1]),
            replica=replica,
            cut=cut_of(*place),
        )
        for number, place in enumerate(places)
    }


def conditions(n=400, *, seed=5, most=2.8):
    """Conditions with both charges, some of them beyond all slices."""
    rng = np.random.default_rng(seed)
    return {
        "run": np.full(n, 3, np.int32),
        "event": np.arange(n, dtype=np.int64),
        "P": rng.uniform(1000, 10_000, n),
        "eta": rng.uniform(-most, most, n).astype(np.float32),
        "charge": rng.choice([-1, 1], n).astype(np.int32),
    }
