"""Every output tells the verb that wrote it and its options, also where the verb is called from Python."""

from __future__ import annotations

import numpy as np

from calorefine import Columns
from calorefine.io.provenance import made_by, plain, read_provenance, recorded, stamped
from calorefine.io.sample import WeightedFiles
from calorefine.io.writer import write_tree
from calorefine.observables import Histogram, Regular
from calorefine.weights import Exponential, Gaussian, SPlot


@recorded("inner")
def inner(*, seed: int = 3) -> dict:
    return made_by() | {"seed": seed}


@recorded("outer")
def outer(*, files: str, columns: Columns | None = None, seed: int = 0) -> tuple[dict, dict]:
    return inner(seed=seed), made_by() | {"used": (files, columns)}


def test_verb_and_all_options_are_recorded():
    columns = Columns({"x": None}, {}, key=["run"])
    within, told = outer(files="a.root", columns=columns)
    assert (told["verb"], told["changed"]) == ("outer", ["files", "columns"])
    assert told["options"]["seed"] == 0
    assert told["options"]["files"] == "a.root"
    assert Columns.from_dict(told["options"]["columns"]) == columns
    assert (within["verb"], within["options"]) == ("inner", {"seed": 0})
    assert "verb" not in made_by()
    assert set(made_by()) == {"calorefine", "python", "torch"}


def test_objects_are_described_as_in_a_configuration():
    shapes = {"signal": Gaussian(fixed=["mean"]), "background": Exponential()}
    splot = plain(SPlot(spectator="m", range=(0, 1), species=shapes))
    assert splot["class_path"] == "SPlot"
    assert splot["init_args"]["species"]["signal"]["class_path"] == "Gaussian"
    assert splot["init_args"]["species"]["signal"]["init_args"]["fixed"] == ["mean"]
    observable = plain(Histogram("x", bins=Regular(4, 0.0, 1.0)))
    assert observable["init_args"]["edges"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    left_out = dict.fromkeys(["tree", "friends", "friends_by"])
    assert plain(WeightedFiles("a.root", weight="w")) == {"files": "a.root", "weight": "w", **left_out}


def test_copied_files_keep_the_earlier_verbs(tmp_path):
    @recorded("first")
    def first() -> None:
        with write_tree(tmp_path / "1.root", "events") as writer:
            writer.extend({"x": np.zeros(2)})
            writer.finish(made_by() | {"model": "flow"})

    @recorded("second")
    def second() -> None:
        with write_tree(tmp_path / "2.root", "events") as writer:
            writer.extend({"x": np.zeros(2)})
            writer.finish(read_provenance(tmp_path / "1.root"))

    first()
    second()
    told = read_provenance(tmp_path / "2.root")
    assert (told["model"], told["verb"]) == ("flow", "second")
    assert [one["verb"] for one in told["earlier"]] == ["first"]
    assert "earlier" not in read_provenance(tmp_path / "1.root")
    assert stamped(told)["verb"] == "second"  # no verb runs
