"""Outputs that can't be written are named in one line, before the work begins where that can be known."""

from __future__ import annotations

import subprocess
import sys

import pytest

from calorefine.cli import calorefine
from calorefine.errors import ConfigError, FileError
from calorefine.io.writer import check_outputs, naming, replacing

ROOM = "expected a place with room and permission"
SHAPES = "{signal: {class_path: Gaussian}, background: {class_path: Exponential}}"
LABELS = "{class_path: LabelProbabilities, init_args: {probabilities: {signal: p, background: q}}}"
COLUMNS = ["--files", "a.root", "--tree", "t", "--columns", "{features: {x: }, context: {}}"]
ARGUMENTS = {
    "splot": [*COLUMNS, "--splot", f"{{spectator: m, range: [0, 1], species: {SHAPES}}}"],
    "fractions": [*COLUMNS, "--weights", LABELS],
    "plot": ["--generated", "a.root", "--reference", "b.root"],
    "propagate": ["--nominal", "a.root", "--observables", "{}"],
    "validate": ["--generated", "a.root", "--reference", "b.root"],
    "report": ["--systematics", "a.npz"],
}
ENDS = {"plot": ".png", "propagate": "", "validate": ".json", "report": ".html"}


@pytest.mark.parametrize("verb", ARGUMENTS)
def test_outputs_are_looked_for_before_inputs(verb, tmp_path):
    """None of the inputs exists."""
    end = ENDS.get(verb, ".root")
    written = tmp_path / f"there{end or '.root'}"
    written.touch()
    arguments = [verb, *ARGUMENTS[verb], "--output"]
    with pytest.raises(ConfigError, match="exists already"):
        calorefine([*arguments, str(tmp_path / f"there{end}")])
    with pytest.raises(FileError, match="there is no folder"):
        calorefine([*arguments, str(tmp_path / "folder" / f"new{end}")])
    assert [path.name for path in tmp_path.iterdir()] == [written.name]


def test_refused_by_the_system(tmp_path, monkeypatch):
    def refuse(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    for attempt in (lambda: check_outputs(tmp_path / "o.json", overwrite=False), replacing_one(tmp_path / "o.json")):
        with pytest.raises(FileError, match=f"o.json: can't be written: Permission denied; {ROOM}"):
            attempt()


def replacing_one(path):
    def attempt():
        with replacing(path, overwrite=False):
            pass

    return attempt


def test_errors_of_inputs_are_not_the_outputs(tmp_path):
    with pytest.raises(PermissionError), naming(tmp_path / "out.root"):
        raise PermissionError(13, "Permission denied", "in.root")


FULL = """
import resource, signal, sys
import numpy as np, torch
from pathlib import Path
from calorefine.errors import FileError
from calorefine.io.writer import replacing, write_tree
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
values = np.random.default_rng(1).normal(size=100_000)
def tree(path):
    with write_tree(path, "events") as writer:
        writer.extend({"x": values})
        writer.finish({})
def checkpoint(path):
    with replacing(path, overwrite=False) as beside:
        torch.save(torch.from_numpy(values), beside)
def text(path):
    with replacing(path, overwrite=False) as beside:
        beside.write_text("x" * 100_000)
for write in (tree, checkpoint, text):
    try:
        write(Path(sys.argv[1]) / write.__name__)
    except FileError as error:
        print(error)
"""


def test_disk_full(tmp_path):
    """A limit on the size of files stands for it: the system refuses to write, at the same place."""
    process = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == [str(tmp_path / n) for n in ("tree", "checkpoint", "text")]
    assert all("can't be written" in line and line.endswith(ROOM) for line in lines)
    assert not list(tmp_path.iterdir())
