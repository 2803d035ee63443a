"""Configurations of `lightning fit` and of verbs, changed: an error, or all is made that a run would start with.

A training is parsed, its data are set up on a small file and its networks are built; a verb's options are parsed, and
its samples are opened.  Neither goes on from there.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import io
import os
import random
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import uproot
import yaml
from fuzz_saved import OTHER, _places

from calorefine import cli
from calorefine.fit.command import lightning
from calorefine.io.sample import WeightedFiles

ROOT = Path(__file__).resolve().parents[2]
VERB_CONFIGS = {
    "splot": "splot",
    "fractions": "fractions",
    "weights-report": "weights_report",
    "ensemble": "ensemble",
    "reweight": "reweight",
    "propagate": "propagate",
    "report": "report",
    "compare": "compare",
    "validate": "validate",
}
FITS = ("conditional_flow", "library", "weighted_cramer_gan", "weighted_wgan")
TEXTS = (
    "",
    ":",
    "- ",
    "{",
    "}",
    "[",
    '"',
    "'",
    "#",
    "\t",
    "&a",
    "*a",
    "!!python/object:os.system",
    "null",
    "on",
    "é",
    "1e3",
)


@cache
def _folder() -> Path:
    """A folder with a small file of electrons under every name that configurations use."""
    folder = Path(mkdtemp(prefix="fuzz-configs-"))
    rng = np.random.default_rng(0)
    n = 120
    arrays: dict[str, Any] = {"run": np.ones(n, np.int64), "event": np.arange(n), "sw_signal": np.ones(n)}
    arrays |= {"sw_background": np.ones(n), "in_domain": np.ones(n, bool), "weight": np.ones(n)}
    names = ("m_ee_gev", "p_gev", "x_in_cell_mm", "e_over_p", "n_pv")
    arrays |= {name: rng.uniform(2.6, 3.6, n) for name in names}
    with uproot.open(ROOT / "examples" / "data" / "electron_calibration.root") as file:
        known = file["events"].arrays(library="np", entry_stop=n)
    arrays |= {name: values for name, values in known.items() if name not in ("run", "event")}
    used = ["electron_calibration.root", "electron_reference.root"]
    used += ["electron_calibration_sw.root", "generated.root", "weighted.root", "generated_replicas.root"]
    with uproot.recreate(folder / "tiny.root") as file:
        file["events"] = arrays
    (folder / "examples" / "data").mkdir(parents=True)
    for name in used:
        for parent in (folder, folder / "examples" / "data"):
            (parent / name).symlink_to(folder / "tiny.root")
    for path in (ROOT / "configs").glob("*.yaml"):
        (folder / path.name).write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
    return folder


@cache
def _whole(name: str) -> str:
    """A configuration; trainings of events without weights, whose fit takes too long here."""
    content = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    if "data" in content:
        content["data"] = content["data"] | {"weights": "sw_signal"}
        content["data"].pop("positive", None)
    return yaml.safe_dump(content, sort_keys=False)


def _renamed(rng: random.Random, name: str) -> str:
    at = rng.randrange(len(name))
    return rng.choice([name[:at] + name[at + 1 :] or "x", name[:at] + rng.choice("abz_-.") + name[at:], name.upper()])


def changed(rng: random.Random, text: str) -> str:
    """A text with keys renamed, dropped or there twice, values of other kinds, or characters changed."""
    draw = rng.random()
    if draw < 0.25:
        at = rng.randrange(len(text))
        cut = at + rng.choice([0, 1, 5, 40, len(text)])
        return text[:at] + rng.choice(TEXTS) + text[cut:]
    if draw < 0.35:
        lines = text.splitlines()
        at = rng.randrange(len(lines))
        return "\n".join([*lines[: at + 1], lines[at], *lines[at + 1 :]])
    content = copy.deepcopy(yaml.safe_load(text))
    for _ in range(rng.choice([1, 1, 2])):
        if not (places := _places(content)):
            break
        *parents, last = rng.choice(places)
        parent: Any = content
        for name in parents:
            parent = parent[name]
        kind = rng.random()
        if kind < 0.3 and isinstance(parent, dict) and isinstance(last, str):
            parent[_renamed(rng, last)] = parent.pop(last)
        elif kind < 0.5:
            del parent[last]
        else:
            parent[last] = rng.choice([one for one in OTHER if not isinstance(one, bytes)])
    return yaml.safe_dump(content, sort_keys=False)


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Work in a folder, with modules and arguments as they were afterwards."""
    before, arguments = Path.cwd(), sys.argv
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)
        sys.argv = arguments


def fit(rng: random.Random, folder: Path) -> str:
    """A training, up to its first step."""
    path = _folder() / f"fuzz_{os.getpid()}.yaml"
    path.write_text(changed(rng, _whole(rng.choice(FITS))), encoding="utf-8")

    def start() -> None:
        made = lightning(["-c", str(path), "--runs", str(folder)], run=False)
        made.datamodule.setup("fit")
        made.model.set_up(made.datamodule)

    with _inside(_folder()):
        cli._report(start)
    return "ok"


def verb(rng: random.Random, folder: Path) -> str:
    """A verb, up to its work."""
    del folder
    name = rng.choice(list(VERB_CONFIGS))
    path = _folder() / f"fuzz_{os.getpid()}.yaml"
    path.write_text(changed(rng, _whole(VERB_CONFIGS[name])), encoding="utf-8")
    module, function = cli.VERBS[name]
    whole = inspect.unwrap(getattr(import_module(f"calorefine.verbs.{module}"), function))

    @functools.wraps(whole)
    def up_to_work(**given: Any) -> None:
        for value in given.values():
            if isinstance(value, WeightedFiles):
                value.within("events").source.n_entries()

    with _inside(_folder()):
        cli._report(lambda: cli._run(name, up_to_work, ["-c", str(path)]))
    return "ok"


def prepare_case() -> None:
    """Make the files, and import what a command imports."""
    with _inside(_folder()), contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        lightning(["--print_config"], run=False)


def case(rng: random.Random, folder: Path) -> str:
    """A training or a verb."""
    return fit(rng, folder) if rng.random() < 0.4 else verb(rng, folder)
