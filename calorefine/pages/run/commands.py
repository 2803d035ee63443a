"""Shell commands that make a run again, from what its files say of themselves."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Known:
    """What the files of a run say.

    Attributes:
        provenances: role of a file to its provenance.
        paths: role of a file to its path.
        members: records of the ensemble's members.
        ensemble: its folder.
        carried: branches that the generated events have besides what was generated.
    """

    provenances: Mapping[str, Mapping[str, Any]]
    paths: Mapping[str, str]
    members: Sequence[Mapping[str, Any]]
    ensemble: str | None
    carried: Sequence[str] = ()

    def path(self, name: str) -> str:
        """Path of a file of which only the name is known; the name, if none or several of the files are called so."""
        known = {path for path in self.paths.values() if Path(path).name == name}
        return known.pop() if len(known) == 1 else name

    def files(self, names: Sequence[str]) -> str | None:
        """One file, or a list as YAML has it."""
        found = [self.path(name) for name in names]
        return None if not found else found[0] if len(found) == 1 else "[" + ",".join(found) + "]"


def commands(known: Known, configs: Mapping[str, str]) -> list[str]:
    """Commands in the order of the pipeline.

    Args:
        known: what the files say.
        configs: verb to its configuration; `fit` for that of `lightning fit`.
    """
    made = [
        _splot(known, configs),
        _ensemble(known, configs),
        _sample(known, "the reweighter's events", _fitted(known), configs),
        _reweight(known, configs),
        _sample(known, "the nominal events", known.provenances.get("generated"), configs),
        _apply(known, configs),
        _propagate(known, configs),
    ]
    others = [str(one["name"]) for one in known.members if one["kind"] != "nominal"]
    measured = known.provenances.get("systematics", {}).get("files", {})
    if others and {"calibration", "training"} & set(measured):
        made.insert(-1, f"# sample and reweight --apply likewise for {', '.join(others)}")
    return [line for line in made if line] or ["# no file tells how it was made"]


def _command(verb: str, configs: Mapping[str, str], **options: Any) -> str:
    """One command; options that are None or empty are left out, lists are joined by commas."""
    words = ["calorefine", verb]
    if verb in configs:
        words += ["-c", configs[verb]]
    for name, value in options.items():
        if value not in (None, "", [], {}):
            joined = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            words += [f"--{name}", joined]
    return shlex.join(words)


def _config(verb: str, configs: Mapping[str, str]) -> dict[str, str]:
    """Configuration that is needed and not named."""
    return {} if verb in configs else {"config": f"{verb.upper()}.yaml"}


def _splot(known: Known, configs: Mapping[str, str]) -> str:
    if "splot" not in known.provenances:
        return ""
    provenance = known.provenances["splot"]
    replicas = provenance.get("splot", {}).get("replicas", {})
    counted = {"replicas": replicas["n"], "seed": replicas["seed"]} if replicas.get("n") else {}
    files = {} if "splot" in configs else {"files": known.files(provenance.get("files", []))}
    given = {**files, "output": known.paths["weights"], **counted}
    return _command("splot", configs, **_config("splot", configs), **given)


def _ensemble(known: Known, configs: Mapping[str, str]) -> str:
    if known.ensemble is None:
        return ""
    counts = {kind: sum(one["kind"] == kind for one in known.members) for kind in ("replica", "seed")}
    given = {"output": known.ensemble, "replicas": counts["replica"], "seeds": counts["seed"]}
    fit = {} if "ensemble" in configs else {"fit": configs.get("fit", "FIT.yaml")}
    return _command("ensemble", configs, **fit, **given)


def _fitted(known: Known) -> Mapping[str, Any] | None:
    """Provenance of the generated events that the reweighter learned from."""
    found = known.provenances.get("reweighter", {}).get("generated", {})
    own = found.get("provenance")
    return {**own, "output": known.files(found["files"]), "carried": []} if own else None


def _sample(known: Known, what: str, made: Mapping[str, Any] | None, configs: Mapping[str, str]) -> str:
    if not made or "conditions" not in made:
        return ""
    checkpoint = known.paths.get("nominal checkpoint", made.get("checkpoint"))
    given = {
        "checkpoint": checkpoint,
        "conditions": known.files(made["conditions"]),
        "output": made.get("output") or known.paths.get("generated"),
        "seed": made.get("seed"),
        "n_per_event": made.get("n_per_event"),
        "reweighter": made.get("reweighter"),
        "pass_through": made.get("carried", known.carried) or "BRANCHES",
    }
    return f"{_command('sample', configs, **given)}  # {what}"


def _reweight(known: Known, configs: Mapping[str, str]) -> str:
    if "reweighter" not in known.provenances:
        return ""
    made = known.provenances["reweighter"]
    given = {
        "generated": known.files(made["generated"]["files"]),
        "reference": known.files(made["reference"]["files"]),
        "reference_weight": made["reference"]["weight"],
        "generated_weight": made["generated"]["weight"],
        "seed": made.get("seed"),
        "output": known.paths["reweighter"].removesuffix(".json") + ".pt",
    }
    return _command("reweight", configs, **_config("reweight", configs), **given)


def _apply(known: Known, configs: Mapping[str, str]) -> str:
    lines = []
    made = known.provenances.get("weighted", {})
    for branch, one in made.get("reweight", {}).items():
        reweighter = known.paths.get("reweighter", "").removesuffix(".json")
        given = {
            "apply": f"{reweighter}.pt" if reweighter else one.get("reweighter"),
            "generated": known.paths.get("generated") or known.files(one.get("files", [])),
            "generated_weight": one.get("generated_weight"),
            "branch": branch,
            "normalization": one.get("normalization"),
            "output": known.paths["weighted"],
        }
        lines.append(_command("reweight", {}, **given))
    if "replica_weights" in made:
        given = {
            "ensemble": known.ensemble or "ENSEMBLE",
            "generated": known.paths.get("generated", "GENERATED.root"),
            "output": known.paths["weighted"],
        }
        lines.append(_command("replica-weights", configs, **given))
    return "\n".join(lines)


def _propagate(known: Known, configs: Mapping[str, str]) -> str:
    if "systematics" not in known.provenances:
        return ""
    made = known.provenances["systematics"]
    nominal = list(made.get("files", {}).get("nominal", {}))
    output = known.paths["systematics"].removesuffix(".npz")
    given = {"nominal": known.files(nominal), "weight": made.get("weight"), "output": output}
    return _command("propagate", configs, **_config("propagate", configs), **given)
