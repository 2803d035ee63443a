"""Weights of the members on the nominal sample, against samples drawn from the members themselves."""

from __future__ import annotations

import json

import numpy as np
import pytest
import uproot
import yaml
from scipy.stats import chi2

from calorefine import Simulator
from calorefine.cli import calorefine
from calorefine.datasets import ImpureToy
from calorefine.ensemble.members import RECORD, Ensemble
from calorefine.ensemble.nominal_sample import sample_conditions, sample_request
from calorefine.ensemble.ratio_checks import MemberSums
from calorefine.ensemble.ratios import LikelihoodRatios, Ratios
from calorefine.errors import BranchError, CalorefineWarning, ConfigError, EmptySelectionError
from calorefine.io.chunks import Chunk
from calorefine.io.provenance import read_provenance
from calorefine.io.root import RootFiles
from calorefine.io.sample import WeightedFiles
from calorefine.verbs import replica_weights as module
from calorefine.verbs.replica_weights import replica_weights

pytestmark = pytest.mark.filterwarnings("ignore:the spectator's shape depends on x and c")  # by chance, p 0.009 of 6

N = 60_000
MODELS = {
    "Flow": ({"hidden": [16]}, 8, 4),
    "WGAN": ({"generator_hidden": [16], "critic_hidden": [16]}, 20, 1),
}
UNTRAINED = pytest.mark.filterwarnings("ignore:.*not trained well")  # they are small, and soon done


def sampled(checkpoint, folder, name, *options):
    """Events at the conditions of the test."""
    given = ["--conditions", str(folder / "conditions.root"), "--output", str(folder / name), "--overwrite", "true"]
    calorefine(["sample", "--checkpoint", str(checkpoint), *given, "--pass_through", "c,run,event", *options])
    return folder / name


@pytest.fixture(scope="module")
def ensembles(tmp_path_factory):
    """Function that returns the folder of a small ensemble `e`, with `nominal.root` beside it."""
    made = {}

    def get(name):
        if name not in made:
            made[name] = train(tmp_path_factory.mktemp(name), name)
        return made[name]

    return get


def train(folder, name):
    options, epochs, replicas = MODELS[name]
    table = ImpureToy(fraction=0.5, resolution=0.02).generate(2500, seed=11)
    given = {"c": np.random.default_rng(1).random(N), "run": np.full(N, 9), "event": np.arange(N)}
    for file_name, arrays in (("toy.root", table), ("conditions.root", given)):
        with uproot.recreate(folder / file_name) as file:
            file.mktree("events", {k: v.dtype for k, v in arrays.items()}).extend(arrays)
    shapes = {"signal": {"class_path": "Gaussian"}, "background": {"class_path": "Exponential"}}
    content = {
        "seed_everything": 4,
        "data": {
            "files": str(folder / "toy.root"),
            "tree": "events",
            "columns": {"features": {"x": None, "y": None}, "context": {"c": None}, "key": ["run", "event"]},
            "weights": {"class_path": "SPlot", "init_args": {"spectator": "m", "range": [0, 1], "species": shapes}},
            "positive": {"n_folds": 2} if name == "Flow" else None,
            "batch_size": 256,
        },
        "model": {"class_path": name, "init_args": options},
        "trainer": {"accelerator": "cpu", "max_epochs": epochs, "log_every_n_steps": 5},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    given = ["--fit", str(folder / "c.yaml"), "--output", str(folder / "e"), "--replicas", str(replicas)]
    calorefine(["ensemble", *given, "--seeds", "1", "--processes", "1"])
    sampled(folder / "e" / "nominal" / "best.ckpt", folder, "nominal.root")
    return folder


def read(path):
    with uproot.open(path) as file:
        return file["events"].arrays(library="np")


def run(folder, name="weighted.root", **options):
    given = {"ensemble": str(folder / "e"), "generated": str(folder / "nominal.root"), "output": str(folder / name)}
    return replica_weights(**given | {"overwrite": True} | options)


def functions(table, edges):
    """Nine of ten bins of x, and the mean of y, as functions (n, 10) of the events."""
    cell = np.digitize(table["x"], edges)
    return np.column_stack([*(cell == k for k in range(9)), table["y"]]).astype(float)


def compare(folder, out):
    """Shifts (K, 10) from the nominal values by weights and by samples, and the latter's p-values for the former.

    Events are independent, and those of the two ways are pairs with the same noise: the covariance of the differences
    is that of the events' own contributions to them.
    """
    edges = np.quantile(out["x"], np.linspace(0, 1, 11)[1:-1])
    nominal = functions(out, edges)
    weights = np.concatenate([out["weight_replica"], out["weight_seed"]], axis=1)
    shifts, p_values = [], []
    for k, name in enumerate(list(Ensemble.load(folder / "e").records)[1:]):
        drawn = functions(read(sampled(folder / "e" / name / "best.ckpt", folder, "member.root")), edges)
        mean = np.average(nominal, weights=weights[:, k], axis=0)
        own = weights[:, k, None] * (nominal - mean) / weights[:, k].mean() - (drawn - drawn.mean(axis=0))
        difference = mean - drawn.mean(axis=0)
        p_values.append(chi2.sf(difference @ np.linalg.solve(np.cov(own.T) / N, difference), 10))
        shifts.append((mean - nominal.mean(axis=0), drawn.mean(axis=0) - nominal.mean(axis=0)))
    return *np.array(shifts).swapaxes(0, 1), np.array(p_values)


def test_likelihood_ratios_give_what_samples_of_the_members_give(ensembles):
    """Five members (seeds 4, 11 and 1), a chi2 of 10 numbers each; below 1e-4 by chance in 1 of 2000 cases."""
    folder = ensembles("Flow")
    text = str(run(folder))
    assert "weight_replica[4] and weight_seed[1], ratios by likelihood" in text
    out = read(folder / "weighted.root")
    by_weights, by_samples, p_values = compare(folder, out)
    assert p_values.min() > 1e-4
    spread = [np.sqrt(np.mean(one[:4] ** 2, axis=0)) for one in (by_weights, by_samples)]
    assert spread[1][:9].min() > 0.002  # well above the errors
    np.testing.assert_allclose(spread[0], spread[1], rtol=0.25)  # a few times the errors of either
    covariance = [one[:4, :9].T @ one[:4, :9] for one in (by_weights, by_samples)]
    assert np.linalg.norm(covariance[0] - covariance[1]) < 0.4 * np.linalg.norm(covariance[1])  # 0.29 found


@UNTRAINED
def test_moment_ratios_follow_a_gan(ensembles):
    """The bins of x and the mean of y shift by weights as by samples of the members, where trees missed a fourth.

    With the last digits of the sample changed, six times, no figure changes in its third digit.  Five trainings of
    other seeds have slopes within 0.044 of 1 and norms below 0.22; the mean of y of one of them doesn't shift at all,
    so that no ratio is known.
    """
    folder = ensembles("WGAN")
    summary = run(folder, n_train=40_000)
    assert summary.method == "moments"
    by_weights, by_samples, _ = compare(folder, read(folder / "weighted.root"))
    bins = by_weights[:, :9], by_samples[:, :9]
    slope = np.sum(bins[0] * bins[1]) / np.sum(bins[1] ** 2)
    assert abs(slope - 1) < 0.1
    assert np.linalg.norm(bins[0] - bins[1]) < 0.35 * np.linalg.norm(bins[1])
    assert (np.abs(by_weights[:, 9] / by_samples[:, 9] - 1) < 0.5).all()
    assert (np.abs(summary.sums.mean - 1) < 0.02).all()


def test_rows_weights_and_provenance(ensembles, monkeypatch):
    folder = ensembles("Flow")
    summary, own, before = run(folder, weight="2 + c"), read(folder / "weighted.root"), read(folder / "nominal.root")
    assert set(own) == {*before, "weight_replica", "weight_seed"}
    for name, array in before.items():
        assert (own[name].dtype, own[name].tobytes()) == (array.dtype, array.tobytes())
    density = {
        name: Simulator.load(folder / "e" / name / "best.ckpt").log_prob(before)
        for name in ("nominal", "replica_003", "seed_001")
    }
    for branch, entry, name in (("weight_replica", 2, "replica_003"), ("weight_seed", 0, "seed_001")):
        wanted = (2 + before["c"]) * np.exp(density[name] - density["nominal"])
        np.testing.assert_allclose(own[branch][:, entry], wanted, rtol=1e-6)
    w, r = 2 + before["c"], own["weight_replica"][:, 2]
    assert summary.sums.n_eff[2] == pytest.approx(r.sum() ** 2 / np.sum(r**2))
    assert summary.sums.mean[2] == pytest.approx(r.sum() / w.sum())
    assert summary.sums.error[2] == pytest.approx(np.sqrt(np.sum((r - w * r.sum() / w.sum()) ** 2)) / w.sum())
    told = read_provenance(folder / "weighted.root")
    assert told["model"] == "Flow"
    entry = told["replica_weights"]
    assert entry["branches"]["weight_replica"] == [f"replica_00{k}" for k in (1, 2, 3, 4)]
    assert (
        entry["checkpoint_sha256"]["replica_002"]
        == json.loads((folder / "e" / "replica_002" / RECORD).read_text())["checkpoint_sha256"]
    )
    assert entry["n_eff"]["replica_003"] == pytest.approx(summary.sums.n_eff[2])
    monkeypatch.setattr(module, "MOST_ROWS", 777)
    run(folder, name="parts.root", weight="2 + c")
    parts = read(folder / "parts.root")
    np.testing.assert_allclose(parts["weight_replica"], own["weight_replica"], rtol=1e-4)


def test_large_ratios_are_cut_off_and_counted(ensembles):
    folder = ensembles("Flow")
    run(folder)
    before = read(folder / "weighted.root")["weight_replica"]
    limit = float(np.quantile(before, 0.9))
    with pytest.warns(CalorefineWarning, match="mean ratio"):  # lower by what is cut off
        summary = run(folder, max_ratio=limit)
    cut = np.minimum(before, limit)
    np.testing.assert_allclose(read(folder / "weighted.root")["weight_replica"], cut, rtol=1e-14)
    np.testing.assert_array_equal(summary.sums.n_cut_off[:4], np.sum(before > limit, axis=0))


def test_what_is_unreliable_is_told():
    """Few events that carry all weight; a mean that is not 1."""
    sums = MemberSums(["a", "b", "c"])
    ratio = np.ones((10_000, 3))
    ratio[:, 0] = np.where(np.arange(10_000) < 20, 500.0, 0.0)
    ratio[:, 1] = 1.1 + 0.1 * np.sin(np.arange(10_000))
    sums.add(np.full(10_000, 3.0), ratio, np.zeros_like(ratio, bool), np.arange(10_000, dtype=np.uint64))
    assert sums.n_eff == pytest.approx([20, 10_000 / (1 + 0.005 / 1.21), 10_000], rel=1e-3)
    found = sums.warnings()
    assert [text[:12] for text in found] == ["a: n_eff fal", "b: mean rati"]
    assert "to 0.2% of the nominal" in found[0]


def test_copies_of_a_condition_are_one_event():
    """Five rows of equal key have the errors and the effective number of one row; as rows they would not."""
    ratio, key = np.random.default_rng(1).lognormal(0, 0.3, (2000, 2)), np.arange(2000, dtype=np.uint64)
    once, copied = MemberSums(["a", "b"]), MemberSums(["a", "b"])
    once.add(np.ones(2000), ratio, np.zeros_like(ratio, bool), key)
    for part in np.split(np.repeat(np.arange(2000), 5), 4):
        copied.add(np.ones(len(part)), ratio[part], np.zeros_like(ratio[part], bool), key[part])
    np.testing.assert_allclose(copied.error, once.error, rtol=1e-9)
    np.testing.assert_allclose(copied.n_eff, once.n_eff, rtol=1e-9)


@UNTRAINED
def test_copies_of_a_condition_are_drawn_at_once(ensembles):
    """A file with three events at each condition has as many conditions as keys; a key's noise is used once."""
    folder = ensembles("WGAN")
    path = sampled(folder / "e" / "nominal" / "best.ckpt", folder, "copies.root", "--n_per_event", "3")
    columns = Simulator.load(folder / "e" / "nominal" / "best.ckpt").columns
    source = RootFiles(path, "events")
    request = sample_request(WeightedFiles(str(path), "events"), columns, {})
    for n_train, few, copies in ((3000, 1000, 3), (270_000, N, 5)):
        found = sample_conditions(source, request, columns, n_train)
        assert len(np.unique(found.key)) == len(found.key) == pytest.approx(few, rel=0.15)
        assert found.copies in (copies, copies + 1)
    with pytest.raises(EmptySelectionError, match="none of them chosen"):
        sample_conditions(source, request, columns, 1)
    with pytest.raises(ConfigError, match="n_train: 0 found"):
        sample_conditions(source, request, columns, 0)


def test_errors(ensembles, tmp_path, monkeypatch):
    folder = ensembles("Flow")
    nominal, other = (folder / "e" / name / "best.ckpt" for name in ("nominal", "replica_001"))
    path = sampled(other, folder, "other.root")
    with pytest.raises(ConfigError, match=r"other\.root: was sampled from a best\.ckpt with .* sample from that"):
        run(folder, generated=str(path))
    bare = ["--conditions", str(folder / "conditions.root"), "--output", str(tmp_path / "bare.root")]
    calorefine(["sample", "--checkpoint", str(nominal), *bare])
    with pytest.raises(BranchError, match=r"there is no branch 'c'.* sample again with --pass_through c"):
        run(folder, generated=str(tmp_path / "bare.root"))
    run(folder)
    with pytest.raises(ConfigError, match="has a branch 'weight_replica' already"):
        run(folder, generated=str(folder / "weighted.root"), output=str(tmp_path / "again.root"))
    with monkeypatch.context() as patched:
        patched.setattr(
            "calorefine.verbs.replica_weights._ratios", lambda *_: pytest.fail("the output is checked first")
        )
        with pytest.raises(ConfigError, match="exists already"):
            run(folder, overwrite=False)
    with pytest.raises(ConfigError, match=r"max_ratio: 0\.5 found"):
        run(folder, max_ratio=0.5)
    arrays = read(folder / "nominal.root")
    with uproot.recreate(tmp_path / "unknown.root") as file:
        file.mktree("events", {k: v.dtype for k, v in arrays.items()}).extend(arrays)
    with pytest.warns(CalorefineWarning, match=r"unknown\.root: doesn't tell its generator"):
        run(folder, generated=str(tmp_path / "unknown.root"), output=str(tmp_path / "out.root"))


def test_gaps_and_other_atoms_are_refused(ensembles, monkeypatch):
    folder = ensembles("Flow")
    whole = Ensemble.load(folder / "e")
    few = Ensemble(whole.folder, {name: one for name, one in whole.records.items() if name != "replica_002"})
    monkeypatch.setattr(Ensemble, "load", lambda _: few)
    with pytest.raises(ConfigError, match="'replica_003' found as number 2: one before it is missing"):
        run(folder)
    first, second = (Simulator.load(whole.checkpoint(name)) for name in ("nominal", "replica_001"))
    knots = second.model.features.knots.clone()
    knots[1, 50:52] = 1.25
    knots[1, :50].clamp_(max=1.25)
    knots[1, 52:].clamp_(min=1.25)
    second.model.features.restore(second.model.features.state_dict() | {"knots": knots})
    with pytest.raises(
        ConfigError, match=r"feature 'y': 1\.25 has a probability of its own in replica_001, and not in"
    ):
        LikelihoodRatios(first, {"replica_001": second})


def test_what_the_nominal_member_cannot_draw_has_ratio_one():
    class Given(Ratios):
        def ratios(self, values):  # noqa: ARG002 (signature of the base class)
            return np.exp([[np.nan, np.nan], [-np.inf, 0.5], [9.0, 0.0]])

    sums, key = MemberSums(["a", "b"]), np.arange(3, dtype=np.uint64)
    found = module._weights(Chunk({}, {}, key, key), np.array([2.0, 3.0, 1.0]), Given(), 100.0, sums)
    np.testing.assert_allclose(found, [[2, 2], [0, 3 * np.exp(0.5)], [100, 1]])
    assert (sums.n_impossible, sums.n_cut_off.tolist()) == (1, [1, 0])
    assert "1 events are impossible for the nominal member and have ratio 1" in sums.warnings()
