"""Generated statistics count once, whether members share the latent noise or not; files as of `calorefine sample`."""

from __future__ import annotations

import numpy as np
import pytest

from calorefine import keys
from calorefine.io.sample import WeightedFiles
from calorefine.io.writer import write_tree
from calorefine.observables import Efficiency, Histogram
from calorefine.systematics.paired import matched, own_noise, shared
from calorefine.systematics.variations import Variations
from calorefine.verbs.propagate import propagate_files

N, K, CALIBRATION = 2000, 60, 2000.0
KEYED = {"columns": {"key": ["event"]}}
OBSERVABLES = {
    "x": Histogram("x", edges=[-1.5, -0.5, 0.0, 0.5, 1.5], normalize="unit"),
    "efficiency": Efficiency("x > 0.3", "c", edges=[0.0, 0.25, 0.5, 0.75, 1.0]),
    "c": Histogram("c", edges=[0.0, 0.3, 0.7, 1.0]),
}


def generated(c, key, model, seed):
    """A generator of two parameters, with noise by key as that of the simulator."""
    z = keys.normal(keys.stream(key, "latent", seed=seed), 1)[:, 0].astype(np.float64)
    return model[0] + c * model[1] + z


def models(rng, size, center=(0.0, 0.0)):
    """What fits to calibration samples, or to bootstrap copies of one, give."""
    return np.array(center) + rng.normal(size=(size, 2)) / np.sqrt(CALIBRATION)


def values(c, x):
    """The observables by numpy."""
    shares = np.histogram(x, OBSERVABLES["x"].edges)[0] / len(x)
    rows = np.digitize(c, OBSERVABLES["efficiency"].edges[1:-1])
    efficiencies = np.bincount(rows, x > 0.3, 4) / np.bincount(rows, minlength=4)
    return np.concatenate([shares, efficiencies, np.histogram(c, OBSERVABLES["c"].edges)[0]])


def true_errors(rng, n_toys=3000):
    """Spread over calibration samples, conditions and noise."""
    toys = []
    for intercept, slope in models(rng, n_toys):
        c = rng.random(rng.poisson(N))
        toys.append(values(c, intercept + slope * c + rng.normal(size=len(c))))
    return np.std(toys, axis=0)


def write(path, columns, told):
    with write_tree(path, "events") as writer:
        writer.extend(columns)
        writer.finish(told)


def write_members(folder, rng, kind):
    """A nominal file, and replicas as files or as weights of it."""
    c, event = rng.random(N), np.arange(N)
    key = keys.make_keys([event])
    (nominal,) = models(rng, 1)
    members = [nominal, *models(rng, K, center=nominal)]
    told = {"conditions": ["conditions.root"], "n_conditions": N, "n_per_event": 1, **KEYED}
    kept = {"event": event} if kind != "by place" else {}
    for k, model in enumerate(members[: 1 if kind == "weights" else None]):
        seed = k if kind in ("own", "by place") else 0
        x = generated(c, key, model, seed)
        more = {}
        if kind == "weights":
            shift = np.array([m[0] + c * m[1] for m in members])
            logs = -0.5 * ((x - shift[1:]) ** 2 - (x - shift[0]) ** 2)
            more = {"weight_replica": np.exp(logs).T.copy()}
        name = f"replica_{k:03d}.root" if k else "nominal.root"
        write(folder / name, {"x": x, "c": c, **kept, **more}, told | {"seed": seed})


def propagated(folder, calibration, **options):
    nominal, output = str(folder / "nominal.root"), str(folder / "s")
    options = {"nominal": nominal, "observables": OBSERVABLES, "output": output, "overwrite": True} | options
    return propagate_files(calibration=calibration, **options)


@pytest.mark.parametrize("kind", ["common", "own", "by place", "weights"])
def test_total_is_the_true_error_whatever_noise_members_have(tmp_path, kind):
    """Seeds 1 and 2; expected within 0.85 to 1.15.

    The root mean square of 8 claimed over true errors from 60 replicas is known to 3.6 %, so that one of them fails by
    accident in 10^4 seeds.  Counted twice, the statistics give 1.33 with noise of their own.
    """
    write_members(tmp_path, np.random.default_rng(1), kind)
    varied = (
        Variations(weights="weight_replica")
        if kind == "weights"
        else Variations(files=str(tmp_path / "replica_*.root"))
    )
    summary = propagated(tmp_path, varied)
    ratio = summary.systematics.errors() / true_errors(np.random.default_rng(2))
    assert 0.85 < np.sqrt(np.mean(ratio[:8] ** 2)) < 1.15
    np.testing.assert_allclose(ratio[8:], 1, atol=0.1)  # counts of conditions: known, but for that of the toys
    told = [line for line in summary.lines if "in the spread of the members already" in line]
    assert len(told) == (kind != "weights")


def test_where_nothing_tells_it_is_said_and_the_user_may(tmp_path):
    """Files without keys, and of which nothing says that they were generated at the same conditions."""
    rng = np.random.default_rng(3)
    for name in ("nominal", "replica_001", "replica_002"):
        write(tmp_path / f"{name}.root", {"x": rng.normal(size=N), "c": rng.random(N)}, {})
    members = Variations(files=str(tmp_path / "replica_*.root"))
    unknown, shared, own = (propagated(tmp_path, members, noise=noise) for noise in ("measured", "shared", "own"))
    assert any("nothing tells which events of the members go together" in line for line in unknown.lines)
    for summary in (unknown, shared):
        np.testing.assert_array_equal(summary.systematics.covariance("generated"), summary.measured.statistics)
    assert not own.systematics.covariance("generated").any()
    assert not any("nothing tells" in line for line in (*shared.lines, *own.lines))


def test_members_of_two_seeds_share_as_many_pairs_do(tmp_path):
    """Seed 4, half of the members of either seed: 2 of 6 pairs share their noise; the estimate is good to 5 %."""
    rng, event = np.random.default_rng(4), np.arange(N)
    c, key = rng.random(N), keys.make_keys([event])
    samples = []
    for k in range(4):
        write(
            tmp_path / f"{k}.root", {"x": generated(c, key, (0, 0), k // 2), "event": event}, {"seed": k // 2, **KEYED}
        )
        samples.append(WeightedFiles(str(tmp_path / f"{k}.root")))
    observables = {"x": OBSERVABLES["x"]}
    noise = own_noise(samples, observables)
    everything = shared(samples[0], samples[0], observables, matched(samples[0], samples[0]))
    assert np.trace(noise) / np.trace(everything.first) == pytest.approx(4 / 6, abs=0.08)
    assert not everything.apart.any()
