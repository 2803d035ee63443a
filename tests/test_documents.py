"""Every command, configuration and piece of Python in the README and in docs is valid, and runs where that is cheap.

The commands run in the order of the pages, after those of the tutorial, in a folder with a small part of the embedded
sample, with fewer epochs, trees and replicas.  Nothing is trained well: only that it runs is tested.
"""

from __future__ import annotations

import json
import re
import shlex
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import h5py
import pytest
import uproot
import yaml
from threadpoolctl import threadpool_limits

from calorefine.cli import VERBS, calorefine
from calorefine.fit.command import lightning

ROOT = Path(__file__).resolve().parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"
PAGES = [TUTORIAL, ROOT / "README.md", *sorted({*(ROOT / "docs").rglob("*.md")} - {TUTORIAL})]
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "workflows" / "README.md"]
ROWS = {"electron_calibration": 2000, "electron_reference": 800, "electron_fastsim": 1500}
LANGUAGES = {"bash", "python", "yaml", "text"}

TOO_LONG = {
    "python3 tasks.py run": "sets up an environment and trains for minutes; tests/test_examples.py runs its example",
    "python3 tasks.py test": "it is what runs these tests",
    "pip install *": "needs a network",
    "python -m venv peers": "an environment with other packages, for which a network is needed",
    "peers/bin/pip install *": "needs a network",
    "python benchmarks/*": "minutes to half an hour each",
    "snakemake *": "minutes; tests/test_workflow.py runs it in small",
    "calorefine compare *": "trains a dozen generators; tests/verbs/test_compare.py compares three",
    "calorefine reweight -c configs/reweight.yaml --replicas 100": "minutes; as in tests/reweighting/test_replicas.py",
    "lightning fit * --ckpt_path *": "only an interrupted training can be resumed, as tests/test_training.py does",
    "lightning fit * --trainer.strategy ddp *": "starts processes; tests/test_ddp.py does",
    "* --print_config": "prints the options; all others on this list are parsed that way",
}
"""Commands that are not run, with the reason; those of calorefine are parsed."""

EPOCHS = ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
QUIET = [*EPOCHS, "--trainer.enable_progress_bar", "false"]
SMALLER = {
    "lightning fit *": QUIET,
    "lightning fit -c configs/showers/*": ["--data.preprocessing.init_args.epochs", "1"],
    "lightning fit -c configs/two_critics_wgan.yaml": ["--data.weights", "none"],  # so few have a variance below 0
    "calorefine splot *--replicas *": ["--replicas", "3"],
    "calorefine fractions *--replicas *": ["--replicas", "3"],
    "calorefine ensemble *": ["--replicas", "4", "--seeds", "0", "--processes", "1", f"--options={json.dumps(QUIET)}"],
    "calorefine sample *--n-per-event 5*": ["--n_per_event", "1"],
    "calorefine reweight -c *": [f"--estimator.init_args.{n}" for n in ("n_trees=5", "n_repeats=1", "n_folds=2")],
    "calorefine replica-weights *": ["--n_train", "20000"],
    "calorefine validate *": ["--repetitions", "1"],
}
"""Options that are added, to be done in seconds."""

pytestmark = pytest.mark.filterwarnings("ignore")  # a small sample has few events, and is told so


def blocks(page, *languages):
    """Fenced blocks of a page in these languages."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in fenced if language in languages]


def commands(text):
    """Commands of a bash block, each as a list of words, without variables of the environment."""
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    joined = [" ".join(map(shlex.quote, words)) for words in lines if words]
    every = [shlex.split(command) for line in joined for command in line.split(" '&&' ")]
    return [[word for k, word in enumerate(words) if k or not re.match(r"[A-Z]+=", word)] for words in every]


def named(text):
    """File that a block says it is, and the command after `for:`, if there is one."""
    match = re.match(r"# (\w+\.(?:yaml|py))(?:, for: (.*))?\n", text)
    return match.groups() if match else (None, None)


COMMANDS = [command for page in PAGES for block in blocks(page, "bash") for command in commands(block)]


def listed(command):
    """Patterns of the list of those not run that match a command."""
    return [pattern for pattern in TOO_LONG if fnmatch(" ".join(command), pattern)]


def run(words):
    """Run a command of calorefine in this process."""
    return {"lightning": lightning, "calorefine": calorefine}[words[0]](words[1:])


class Sandbox:
    """A folder in which the commands find what they name, and which of them have been run."""

    def __init__(self, folder):
        self.folder, self.done = folder, []
        for name in ("workflows", "benchmarks"):
            (folder / name).symlink_to(ROOT / name)
        for path in (ROOT / "configs").rglob("*.yaml"):  # few events determine one width of the peak, not two
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(path.read_text().replace("DoubleGaussian", "Gaussian"))
        data = folder / "examples" / "data"
        data.mkdir(parents=True)
        for name, rows in ROWS.items():
            with uproot.open(ROOT / "examples" / "data" / f"{name}.root") as file:
                table = file["events"].arrays(library="np", entry_stop=rows)
            self.write(data / f"{name}.root", table)
        parts = {data / "photon_showers.h5": slice(300), folder / "reference_showers.h5": slice(300, 600)}
        with h5py.File(ROOT / "examples" / "data" / "photon_showers.h5") as file:
            for path, rows in parts.items():
                with h5py.File(path, "w") as out:
                    for name in file:
                        out.create_dataset(name, data=file[name][rows])
        other = {"el_P": table["p_gev"] * 1000, "RUN": table["run"], "EVT": table["event"]}
        self.write(folder / "other.root", other | {name: table[name] for name in ("x_in_cell_mm", "n_pv")})
        for text in (text for page in PAGES for text in blocks(page, "yaml", "python")):
            if name := named(text)[0]:
                (folder / name).write_text(text)

    @staticmethod
    def write(path, table):
        """Write a flat tree."""
        with uproot.recreate(path) as file:
            file.mktree("events", {name: values.dtype for name, values in table.items()}).extend(table)

    def run(self, command):
        """Run a command, smaller, unless it has been run; outputs of earlier ones may be replaced."""
        if command in self.done or listed(command):
            return
        self.done.append(command)
        if command[0] == "for":
            body = command[command.index("do") + 1 : command.index(";")]
            members = sorted(path.parent.name for path in Path("ensemble/wgan").glob("*/best.ckpt"))
            assert len(members) == 5
            for member in members:
                self.run([word.replace("$member", member) for word in body])
            return
        added = [word for pattern, words in SMALLER.items() if fnmatch(" ".join(command), pattern) for word in words]
        if command[0] == "calorefine" and command[1] != "ensemble":
            added += ["--overwrite", "true"]
        try:
            run([*command, *added])
        except BaseException as error:
            error.add_note(f"command: {' '.join([*command, *added])}")
            raise

    def run_page(self, page):
        """Run all commands of a page."""
        for block in blocks(page, "bash"):
            for command in commands(block):
                self.run(command)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder, before anything is run."""
    return Sandbox(tmp_path_factory.mktemp("documents"))


@pytest.fixture
def sandbox(small, monkeypatch):
    """The same, as the working directory, from which modules are imported."""
    monkeypatch.chdir(small.folder)
    monkeypatch.syspath_prepend(small.folder)
    with threadpool_limits(1):
        yield small


def parse(words):
    """Check the options of a command and read its configurations, without running it."""
    with pytest.raises(SystemExit) as stopped:
        run([*words, "--print_config"])
    assert stopped.value.code == 0, " ".join(words)


@pytest.mark.chain
def test_all_pages_run(sandbox):
    """One test, since each page uses what the tutorial has left."""
    for page in PAGES:
        sandbox.run_page(page)
        for text in blocks(page, "python"):
            exec(compile(text, str(page), "exec"), {"__name__": page.stem})
    written = (
        "electron_calibration_sw.root weights_report.html new.root comparison.png validation.json reweighter.html "
    )
    written += "weighted.root weighted_new.root generated_replicas.root report.html"
    for name in [*written.split(), *(f"systematics.{end}" for end in ("root", "json", "npz"))]:
        assert Path(name).stat().st_size > 1000, name
    with uproot.open("generated_replicas.root") as file:
        assert file["events"]["weight_replica"].array(library="np").shape == (ROWS["electron_fastsim"], 4)


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("command", [words for words in COMMANDS if listed(words)], ids=" ".join)
def test_commands_that_are_too_long_are_valid(command):
    options = [pair for pair in pairwise(command) if pair[0].startswith("--")]
    if command[0] in ("calorefine", "lightning"):
        parse([word for word in command if word != "--print_config"])
    elif command[0] == "python" and command[1].startswith("benchmarks/"):
        script = Path(command[1]).read_text()
        assert all(f'"{option}"' in script for option, _ in options)
    elif command[0] == "snakemake":
        places = {"--profile": "{}/config.yaml", "--configfile": "{}"}
        assert all(Path(places[option].format(path)).is_file() for option, path in options if option in places)


def test_the_list_has_nothing_that_no_page_says():
    used = {pattern for command in COMMANDS for pattern in listed(command)}
    assert used == set(TOO_LONG)
    assert all(TOO_LONG.values())


def test_all_commands_are_run_or_listed():
    """What is neither calorefine's, for each member or once, nor on the list would be run by nobody."""
    assert not [
        command for command in COMMANDS if command[0] not in ("calorefine", "lightning", "for") and not listed(command)
    ]


@pytest.mark.usefixtures("sandbox")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_configurations_are_valid(page):
    """A block is parsed on top of the configuration that its first line names; one of data, of a training's."""
    for text in blocks(page, "yaml"):
        content, (name, command) = yaml.safe_load(text), named(text)
        assert isinstance(content, dict)
        if command is None:
            assert set(content) == {"data"}, "which command is it for?"
            name, command = "block.yaml", "lightning fit -c configs/weighted_wgan.yaml -c block.yaml"
            Path(name).write_text(text)
        assert name in command
        parse(shlex.split(command))


def test_blocks_say_their_language():
    """A command in a block without one would not be tested."""
    for page in PAGES:
        assert set(re.findall(r"^```(\w*)\n.*?^```$", page.read_text(), re.MULTILINE | re.DOTALL)) <= LANGUAGES, page


def anchors(page):
    """Names that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(page):
    named_files = re.findall(
        r"`((?:calorefine|tests|benchmarks|configs|docs|examples|workflows)/[^`*<>\s]*)`", page.read_text()
    )
    for name in named_files:
        before, brace, rest = name.partition("{")
        inside, _, after = rest.partition("}")
        for part in inside.split(",") if brace else [""]:
            assert (ROOT / f"{before}{part}{after}").exists(), name


def test_every_page_is_linked_and_every_verb_has_one():
    linked = {
        (page.parent / link.partition("#")[0]).resolve()
        for page in LINKED
        for link in re.findall(r"\]\((?!https?:)([^)#\s]+)", page.read_text())
    }
    assert {page for page in PAGES if page.name != "README.md"} <= linked
    assert {f"{verb}.md" for verb in [*VERBS, "fit"]} <= {path.name for path in (ROOT / "docs" / "howto").iterdir()}


def test_contributing_shows_all_rooms():
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)
    shown = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    there = {
        path.stem for path in (ROOT / "calorefine").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert shown == {name for name in there if not name.startswith("__")}


def test_readme_is_short_and_its_figures_are_those_of_the_benchmarks():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.encode()) <= 6500
    figures = set(re.findall(r"0\.\d{3}", readme))
    assert len(figures) > 5
    assert figures <= set(re.findall(r"0\.\d{3}", (ROOT / "docs" / "benchmarks.md").read_text()))
