"""Section on provenance: every file with its digest, whether they belong together, commands that make them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calorefine.ensemble.members import Ensemble
from calorefine.errors import FileError, nearest
from calorefine.io.formats import open_source
from calorefine.io.provenance import digest, read_provenance, versions
from calorefine.io.sample import WeightedFiles
from calorefine.io.sources import expanded
from calorefine.pages.page import Section, Table
from calorefine.pages.run.commands import Known, commands
from calorefine.pages.run.propagated import Propagated
from calorefine.pages.run.section import Part, read_json

TITLE = "Provenance"
SHORT = 16  # letters of a digest that are shown


@dataclass(frozen=True)
class Inputs:
    """Files of a run, as the options of the report name them; None where there is none."""

    tree: str
    splot: str | None = None
    ensemble: str | None = None
    generated: str | list[str] | None = None
    weighted: str | list[str] | None = None
    reference: WeightedFiles | None = None
    truth: WeightedFiles | None = None
    reweighter: str | None = None
    systematics: str | None = None
    configs: Mapping[str, str] = field(default_factory=dict)

    def files(self) -> dict[str, list[Path]]:
        """Role of each file that is there to its paths."""
        singles = {"splot": self.splot, "reweighter": self.reweighter, "systematics": self.systematics}
        found = {role: [Path(name)] for role, name in singles.items() if name}
        if self.ensemble:
            found["nominal checkpoint"] = [Ensemble.load(self.ensemble).checkpoint("nominal")]
        lists = {"generated": self.generated, "weighted": self.weighted}
        lists |= {k: one.files for k, one in (("reference", self.reference), ("truth", self.truth)) if one}
        for role, names in lists.items():
            found |= {role: expanded(names)} if names else {}
        return found


def origin_part(inputs: Inputs, found: Propagated | None, own: str) -> Part:
    """Files, versions, commands and configurations.

    Args:
        inputs: files of the run.
        found: of `calorefine propagate`.
        own: options of the report, as YAML or JSON.

    Raises:
        FileError: a configuration that is named isn't there.
    """
    files = inputs.files()
    digests = {path: digest(path) for paths in files.values() for path in paths}
    known = _known(inputs, files, found)
    rows = [
        [role, str(path), digests[path][:SHORT], _made_by(role, known)]
        for role, paths in files.items()
        for path in paths
    ]
    tables = [Table("Files of this page", ("what", "file", "SHA-256", "made by calorefine"), rows)] if rows else []
    tables.append(Table("Versions that made this page", ("package", "version"), list(versions().items())))
    text = [
        "The commands make the run again; they are put together from what the files say of themselves. In capitals is "
        "what no file tells, and of some files only the name is known. Configurations that are named to the report "
        "follow in full. Not every file records what was changed on the command line: options of 'calorefine ensemble' "
        "and of the reweighter's estimator are to be given as they were."
    ]
    blocks = ["\n".join(commands(known, inputs.configs)), *_configurations(inputs.configs), f"# this report\n{own}"]
    section = Section(TITLE, text, _mixed(inputs, files, digests, known), tables, code=blocks)
    return Part(section)


def _known(inputs: Inputs, files: Mapping[str, list[Path]], found: Propagated | None) -> Known:
    """What the files say of themselves."""
    provenances = {role: read_provenance(files[role][0]) for role in ("generated", "weighted") if files.get(role)}
    if inputs.splot:
        root = Path(inputs.splot).with_suffix(".root")
        provenances["splot"] = read_provenance(root) if root.is_file() else {}
    if inputs.reweighter:
        made = read_json(Path(inputs.reweighter), ("provenance",), "calorefine reweight")
        provenances["reweighter"] = made["provenance"]
    if found:
        provenances["systematics"] = found.provenance
    members = list(Ensemble.load(inputs.ensemble).records.values()) if inputs.ensemble else []
    paths = {role: str(own[0]) for role, own in files.items()}
    paths |= {"weights": str(Path(inputs.splot).with_suffix(".root"))} if inputs.splot else {}
    return Known(provenances, paths, members, inputs.ensemble, _carried(inputs, provenances.get("generated", {})))


def _carried(inputs: Inputs, provenance: Mapping[str, Any]) -> list[str]:
    """Branches of the generated events that were passed through."""
    if not inputs.generated or "columns" not in provenance:
        return []
    own = {*provenance["columns"]["features"], "in_domain", "copy"}
    return [name for name in open_source(inputs.generated, inputs.tree).branch_names() if name not in own]


def _made_by(role: str, known: Known) -> str:
    provenance = known.provenances.get(role, {})
    return str(provenance.get("calorefine") or provenance.get("versions", {}).get("calorefine") or "-")


def _configurations(configs: Mapping[str, str]) -> list[str]:
    """Texts of the configurations that are named."""
    out = []
    for verb, name in configs.items():
        path = Path(name)
        if not path.is_file():
            siblings = [str(one) for one in path.parent.glob("*.yaml")]
            raise FileError(f"configs.{verb}: {path}: no such file{nearest(name, siblings)}")
        out.append(f"# {name}\n{path.read_text(encoding='utf-8').rstrip()}")
    return out


def _mixed(inputs: Inputs, files: Mapping[str, list[Path]], digests: Mapping[Path, str], known: Known) -> list[str]:
    """Files that don't belong to the same run, by the digests that they hold of each other."""
    out = []
    own = {digests[path] for path in files.get("nominal checkpoint", [])}
    made = {role: known.provenances.get(role, {}).get("checkpoint_sha256") for role in ("generated", "weighted")}
    for role, one in made.items():
        if own and one and one not in own:
            out.append(f"{role} events were made by another checkpoint than the nominal one of {inputs.ensemble}")
    if made["generated"] and made["weighted"] and made["generated"] != made["weighted"]:
        out.append("generated and weighted events were made by different checkpoints")
    out += _other_reweighter(inputs, known)
    told = known.provenances.get("systematics", {}).get("files", {}).get("nominal", {})
    if told and files.get("weighted") and not {digests[path] for path in files["weighted"]} & set(told.values()):
        out.append(f"the systematics were made from other events ({', '.join(told)}) than the weighted ones shown here")
    found = {_made_by(role, known) for role in known.provenances} - {"-"}
    return out + (
        [f"files were made by different versions of calorefine: {', '.join(sorted(found))}"] if len(found) > 1 else []
    )


def _other_reweighter(inputs: Inputs, known: Known) -> list[str]:
    """Whether the weights are those of the reweighter whose diagnostics are shown."""
    if not inputs.reweighter:
        return []
    path = Path(inputs.reweighter).with_suffix(".pt")
    entries: Sequence[Mapping[str, Any]] = list(known.provenances.get("weighted", {}).get("reweight", {}).values())
    told = {one["reweighter_sha256"] for one in entries if "reweighter_sha256" in one}
    if not told or not path.is_file() or digest(path) in told:
        return []
    return [f"weighted events were made with another reweighter than {path}"]
