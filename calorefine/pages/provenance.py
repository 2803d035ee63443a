"""Section on provenance: every file with its digest, whether they belong together, commands that make them again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calorefine.io.provenance import made_by
from calorefine.pages.page import Section, Table

SHORT = 16  # letters of a digest that are shown
MADE_BY = {  # role of a file to the verb that writes it, in the order of the pipeline
    "splot": "splot",
    "ensemble": "ensemble",
    "learned from": "sample",
    "reweighter": "reweight",
    "generated": "sample",
    "weighted": "reweight",
    "systematics": "propagate",
}
COMMENTS = {"learned from": "  # the reweighter's events", "generated": "  # the nominal events"}
Provenance = Mapping[str, Any]


def provenance_section(
    files: Mapping[str, Sequence[Path]],
    digests: Mapping[Path, str],
    provenances: Mapping[str, Provenance],
    configs: Mapping[str, tuple[str, str]],
) -> Section:
    """Files, versions, commands and configurations.

    Args:
        files: role to the files of it.
        digests: of each file.
        provenances: role to what the files say of themselves; empty if they don't.
        configs: verb to the path of its configuration and what that holds.
    """
    rows = [
        [role, str(path), digests[path][:SHORT], _version(provenances.get(role, {}))]
        for role, paths in files.items()
        for path in paths
    ]
    own = made_by()
    versions = [(name, own[name]) for name in ("calorefine", "python", "torch")]
    tables = [
        Table("Files of this page", ("what", "file", "SHA-256", "made by calorefine"), rows),
        Table("Versions that made this page", ("package", "version"), versions),
    ]
    text = (
        "The commands make the run again: each file names the verb that made it, with all of its options; those that "
        "are left at their defaults are not shown, but for seeds. Configurations that are named to the report follow "
        "in full; options that are no single values are then in there."
    )
    shown = [f"# {path}\n{content.rstrip()}" for path, content in configs.values()]
    paths = {verb: path for verb, (path, _) in configs.items()}
    given = {k: v for k, v in own.get("options", {}).items() if v is not None}
    code = ["\n".join(_commands(provenances, paths)), *shown, f"# this report\n{json.dumps(given, indent=1)}"]
    return Section("Provenance", [text], list(_mixed(files, digests, provenances)), tables, code=code)


def _commands(provenances: Mapping[str, Provenance], configs: Mapping[str, str]) -> list[str]:
    """Commands in the order of the pipeline, each once."""
    lines: dict[str, str] = {}
    for role, verb in MADE_BY.items():
        if role not in provenances:
            continue
        known = [*provenances[role].get("earlier", []), provenances[role]]
        for record in known:
            if "verb" in record:
                line = command_line(record, configs)
                lines.setdefault(line, line + COMMENTS.get(role, ""))
            else:
                unknown = f"# {role}: written by an earlier version of 'calorefine {verb}': its command is not known"
                lines.setdefault(unknown, unknown)
    varied = [name for name in provenances.get("systematics", {}).get("files", {}) if name != "nominal"]
    likewise = [f"# the files of {' and '.join(varied)} likewise: each holds its own commands"] if varied else []
    return [*lines.values(), *likewise] or ["# no file tells how it was made"]


def command_line(record: Provenance, configs: Mapping[str, str]) -> str:
    """One command with the options that are not the default; those that are no single values are in a configuration."""
    verb = str(record["verb"])
    words = ["calorefine", verb, *(["-c", configs[verb]] if verb in configs else [])]
    for name, value in record["options"].items():
        configured = verb in configs and isinstance(value, dict)
        if (name in record["changed"] or name == "seed") and not configured:
            words += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return shlex.join(words)


def _version(provenance: Provenance) -> str:
    return str(provenance.get("calorefine") or provenance.get("versions", {}).get("calorefine") or "-")


def _mixed(
    files: Mapping[str, Sequence[Path]], digests: Mapping[Path, str], provenances: Mapping[str, Provenance]
) -> Iterator[str]:
    """Files that don't belong to the same run, by the digests that they hold of each other."""
    nominal = {digests[path]: path for path in files.get("nominal checkpoint", [])}
    told = {role: provenances.get(role, {}).get("checkpoint_sha256") for role in ("generated", "weighted")}
    for role, checkpoint in told.items():
        if nominal and checkpoint and checkpoint not in nominal:
            where = next(iter(nominal.values())).parents[1]
            yield f"{role} events were made by another checkpoint than the nominal one of {where}"
    if told["generated"] and told["weighted"] and told["generated"] != told["weighted"]:
        yield "generated and weighted events were made by different checkpoints"
    entries = provenances.get("weighted", {}).get("reweight", {}).values()
    used = {entry["reweighter_sha256"] for entry in entries if "reweighter_sha256" in entry}
    for path in [name.with_suffix(".pt") for name in files.get("reweighter", [])]:
        if used and path in digests and digests[path] not in used:
            yield f"weighted events were made with another reweighter than {path}"
    events = provenances.get("systematics", {}).get("files", {}).get("nominal", {})
    shown = {digests[path] for path in files.get("weighted", [])}
    if events and shown and not shown & set(events.values()):
        yield f"the systematics were made from other events ({', '.join(events)}) than the weighted ones shown here"
    versions = sorted({_version(provenance) for provenance in provenances.values()} - {"-"})
    if len(versions) > 1:
        yield f"files were made by different versions of calorefine: {', '.join(versions)}"
