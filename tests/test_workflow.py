"""The graph of the pipeline, its commands, and a workflow that was killed; Snakemake runs as a user runs it."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import uproot
import yaml

from calorefine import Simulator
from calorefine.cli import calorefine

ROOT = Path(__file__).resolve().parent.parent
PROFILE = ROOT / "workflows" / "profiles" / "local"
ONCE = {"splot": 1, "closure": 1, "propagate": 1, "report": 1, "all": 1}
COMMAND = re.compile(r"^Shell command: (calorefine .*)$", re.MULTILINE)


@pytest.fixture(scope="module")
def kills():
    """The module `benchmarks/workflow_kills.py`."""
    spec = importlib.util.spec_from_file_location("workflow_kills", ROOT / "benchmarks" / "workflow_kills.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """A folder in which the configurations find the embedded sample, and Snakemake may leave its own files."""
    for name in ("configs", "examples", "workflows"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def dry_run(checkout, *options, files=()):
    """Exit code and text of what Snakemake would do on the embedded sample."""
    given = [*(["--configfile", *files] if files else []), *(["--config", *options] if options else [])]
    command = [sys.executable, "-m", "snakemake", "--profile", "workflows/profiles/local", "-n", *given]
    finished = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=False)
    return finished.returncode, finished.stdout + finished.stderr


def jobs(text):
    """Number of jobs by rule."""
    table = text.partition("Job stats:")[2].partition("\n\n")[0]
    return {name: int(count) for name, count in re.findall(r"^(\w+) +(\d+)$", table, re.MULTILINE)}


@pytest.mark.parametrize(("mode", "members", "corrected"), [("both", 7, 7), ("generator", 7, 1), ("reweighter", 1, 1)])
def test_graph(checkout, mode, members, corrected):
    """Four replicas and two other seeds on the embedded sample."""
    code, text = dry_run(checkout, f"replicas_of={mode}")
    assert code == 0, text
    each = dict.fromkeys(("fit", "sample", "weigh"), members)
    each |= dict.fromkeys(("sample_at_calibration", "reweighter"), corrected)
    total = sum(each.values()) + sum(ONCE.values())
    assert jobs(text) == ONCE | each | {"total": total}
    commands = COMMAND.findall(text)
    assert len(commands) == total - 1
    own = [f"'sw_signal_replica[{k}]'" in one for k in range(4) for one in commands if " reweight -c" in one]
    assert sum(own) == (4 if mode == "both" else 0)
    varied = "weight_replica" if mode == "reweighter" else "replica_004.root"
    assert all(varied in one for one in commands if one.startswith(("calorefine propagate", "calorefine report")))


def test_full_has_other_numbers_alone(checkout):
    code, text = dry_run(checkout, files=["workflows/full.yaml"])
    assert code == 0, text
    assert jobs(text)["fit"] == 61
    assert "max_epochs" not in text


def test_commands_are_understood(checkout, monkeypatch, capsys):
    """The verbs parse what the graph gives them, configurations included."""
    monkeypatch.chdir(checkout)
    code, text = dry_run(checkout)
    assert code == 0, text
    first = {shlex.split(one)[1] + str("--apply" in one): shlex.split(one)[1:] for one in COMMAND.findall(text)}
    assert len(first) == 7
    for words in first.values():
        with pytest.raises(SystemExit) as end:
            calorefine([*words, "--print_config"])
        assert end.value.code in (0, None), capsys.readouterr().err


def test_slices_are_trained_side_by_side_and_merged(checkout, monkeypatch, capsys):
    """Each slice's members first, then one map of them all, whose members sample."""
    monkeypatch.chdir(checkout)
    command = ["snakemake", "--snakefile", "workflows/slices.smk", "--configfile", "workflows/slices.yaml"]
    finished = subprocess.run(
        [sys.executable, "-m", *command, "-n", "-p", "--cores", "2"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    text = finished.stdout + finished.stderr
    assert jobs(text) == {"fit": 6, "merge": 1, "sample": 3, "all": 1, "total": 11}
    commands = re.findall(r"(calorefine (?:ensemble|merge|sample) .*)$", text, re.MULTILINE)
    first = {shlex.split(one)[1]: shlex.split(one)[1:] for one in commands}
    assert [*sorted(first)] == ["ensemble", "merge", "sample"]
    for words in first.values():
        with pytest.raises(SystemExit) as end:
            calorefine([*words, "--print_config"])
        assert end.value.code in (0, None), capsys.readouterr().err


def test_paths_with_a_space_stay_whole(checkout):
    """In the shell each is one word."""
    folder = checkout / "open data"
    folder.mkdir()
    paths = {}
    for name in ("calibration", "conditions"):
        first = yaml.safe_load((ROOT / "workflows" / "config.yaml").read_text())[name]
        paths[name] = str(folder / f"my {Path(first).name}")
        shutil.copy(ROOT / first, paths[name])
    config = checkout / "spaces.yaml"
    config.write_text(yaml.safe_dump({**paths, "work": "my work"}))
    code, text = dry_run(checkout, files=[str(config)])
    assert code == 0, text
    commands = [shlex.split(one) for one in COMMAND.findall(text)]
    assert commands
    for words in commands:
        parts = [part for word in words for part in ("open", "data/my", "my", "work") if word == part]
        assert not parts, words
    assert any(paths["calibration"] in words for words in commands)
    assert any("my work/report.html" in words for words in commands)


@pytest.mark.parametrize(
    ("option", "message"),
    [("replicas=1", "replicas: 1 found"), ("replicas_of=both_", "both_"), ("replica=3", "replica found")],
)
def test_options_that_make_no_sense(checkout, option, message):
    code, text = dry_run(checkout, option)
    assert code != 0
    assert message in text


@pytest.mark.chain
def test_killed_training_goes_on(tmp_path, kills):
    """SIGKILL to all processes once the first epochs are on disk."""
    config = kills.write_toy(tmp_path, n=800, epochs=400, replicas=0, seeds=0)
    folder, target = tmp_path / "run", "work/generated/nominal.root"
    process, deadline = kills.start(config, folder, target), time.monotonic() + 120
    while not list(folder.glob("work/ensemble/nominal/runs/**/last.ckpt")):
        assert process.poll() is None, folder.with_suffix(".log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert kills.kill(process) == ["ensemble"]
    weighted = (folder / "work" / "calibration_sw.root").stat().st_mtime_ns
    assert not (folder / "work" / "ensemble" / "nominal" / "member.json").exists()

    kills.finish(config, folder, "--unlock")
    kills.finish(config, folder, target)
    assert (folder / "work" / "calibration_sw.root").stat().st_mtime_ns == weighted
    killed = folder / "work" / "ensemble" / "nominal"
    assert len(list(killed.glob("runs/*/fit/*"))) == 2
    with uproot.open(folder / target) as file:
        assert file["events"].num_entries == 800

    options = json.dumps(["--data.files", str(tmp_path / "calibration.root")])
    whole = tmp_path / "whole"
    given = ["--fit", str(tmp_path / "fit.yaml"), "--output", str(whole), "--replicas", "0", f"--options={options}"]
    calorefine(["ensemble", *given])
    found, expected = (Simulator.load(one / "best.ckpt").model.state_dict() for one in (killed, whole / "nominal"))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    records = [json.loads((one / "member.json").read_text()) for one in (killed, whole / "nominal")]
    assert records[0]["val_loss"] == records[1]["val_loss"]
