"""What may stand for files: patterns of any depth, the home folder, variables; what may not says so."""

from __future__ import annotations

import pytest

from calorefine.errors import FileError
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
        ("root://eos.example//store/1.root", r"not by root; copy it first, as by xrdcp"),
        ("https://example.org/1.root", r"not by https; copy it first"),
    ],
)
def test_what_does_not_expand_says_so(pattern, message):
    with pytest.raises(FileError, match=message):
        expanded(pattern)
