"""The commands start at once: what they don't need isn't imported."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from calorefine.cli import LIGHTNING_VERBS, VERBS, calorefine


def run(*args):
    """Run `calorefine` in a process of its own; return it with the seconds of CPU that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.run([sys.executable, "-m", "calorefine", *args], capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return process, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.mark.parametrize(("option", "limit"), [("--version", 0.5), ("--help", 1.0)])
def test_starts_at_once(option, limit):
    run(option)  # compiles the modules
    process, seconds = run(option)
    assert process.returncode == 0
    assert seconds < limit


def test_help_names_every_verb():
    process, _ = run("--help")
    for verb in (*VERBS, *LIGHTNING_VERBS):
        assert f"    {verb}" in process.stdout


def test_no_verb_is_help():
    assert run()[0].stdout == run("--help")[0].stdout


def test_unknown_verb(capsys):
    with pytest.raises(SystemExit) as end:
        calorefine(["sampel"])
    assert end.value.code == 2
    assert "'sampel' is no verb; did you mean 'sample'?" in capsys.readouterr().err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_help(verb, capsys):
    with pytest.raises(SystemExit) as end:
        calorefine([verb, "--help"])
    assert end.value.code == 0
    assert f"usage: calorefine {verb}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "heavy"),
    [
        ("sample", ["torch", "pytorch_lightning", "sklearn", "scipy.stats", "matplotlib"]),
        ("log-prob", ["torch", "pytorch_lightning", "sklearn", "scipy.stats", "matplotlib"]),
        ("propagate", ["pytorch_lightning", "sklearn", "matplotlib"]),
        ("splot", ["torch", "pytorch_lightning"]),
        ("fractions", ["torch", "pytorch_lightning"]),
    ],
)
def test_help_of_a_verb_waits_for_nothing_that_it_does_not_need(verb, heavy):
    """Imports are what a command takes before it does anything."""
    code = (
        "import contextlib, sys\n"
        "from calorefine.cli import calorefine\n"
        f"with contextlib.suppress(SystemExit):\n    calorefine([{verb!r}, '--help'])\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout[-200:]
