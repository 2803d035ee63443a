"""What may stand for files: patterns of any depth, the home folder, variables; what may not says so."""

from __future__ import annotations

import functools
import http.server
import os
import threading

import numpy as np
import pytest

from calorefine.errors import FileError
from calorefine.io.chunks import Request
from calorefine.io.formats import open_source
from calorefine.io.remote import CACHE
from calorefine.io.sources import expanded


@pytest.fixture
def tree(tmp_path, monkeypatch):
    for name in ("1.root", "a/2.root", "a/b/3.root", "a/b/4.txt", "odd[1].root"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SAMPLES", str(tmp_path / "a"))
    monkeypatch.delenv("NOWHERE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("a/**/*.root", ["a/2.root", "a/b/3.root"]),
        ("*.root", ["1.root", "odd[1].root"]),
        ("~/a/*.root", ["a/2.root"]),
        ("$SAMPLES/b/3.root", ["a/b/3.root"]),
        ("${SAMPLES}/**/*.root", ["a/2.root", "a/b/3.root"]),
        ("odd[1].root", ["odd[1].root"]),
    ],
)
def test_patterns_expand(tree, pattern, found):
    assert [path.resolve() for path in expanded(pattern)] == [tree / name for name in found]


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("$NOWHERE/1.root", r"^\$NOWHERE/1\.root: the environment variable 'NOWHERE' isn't set"),
        ("{1,2}.root", r"braces don't expand here; list the files, or use"),
        ("root://eos.example//store/1.root", r"^root://eos.*: can't be read by root .*pip install fsspec-xrootd"),
        ("nothing://example.org/1.root", r"can't be read by nothing .*; copy the file to a local disk"),
    ],
)
def test_what_does_not_expand_says_so(pattern, message):
    with pytest.raises(FileError, match=message):
        expanded(pattern)


class Silent(http.server.SimpleHTTPRequestHandler):
    """A server of files that prints nothing."""

    def log_message(self, *_):
        """Print nothing."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of the files in a folder."""
    monkeypatch.setenv(CACHE, str(tmp_path / "cache"))
    folder = tmp_path / "served"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Silent, directory=str(folder))) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()


def test_remote_files_are_copied_and_renewed(root_file, server):
    """One that the server has replaced is copied again: an old copy in its place would be silently wrong."""
    folder, address = server
    for second, values in enumerate((np.arange(5.0), np.arange(7.0) + 100)):
        root_file({"x": values}, "remote.root").rename(folder / "remote.root")
        os.utime(folder / "remote.root", (second, second))
        source = open_source(f"{address}/remote.root", "events")
        (chunk,) = source.chunks(Request({"x": "x"}))
        assert chunk.values["x"].tolist() == values.tolist()
        assert [path.name for path in source.paths] == ["remote.root"]
    with pytest.raises(FileError, match=r"http://127\.0\.0\.1:\d+/other\.root: can't be read"):
        open_source(f"{address}/other.root", "events")
