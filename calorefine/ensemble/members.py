"""Members of an ensemble and where they are: one folder for each, complete as soon as it holds a `member.json`.

- `nominal`: the generator that an ordinary training gives.
- `replica_001`, `replica_002`, ...: bootstrap replicas.  Each counts events by its own Poisson numbers, redoes all that
  is derived from the data, and starts from its own seed.  Their spread holds the statistics of the calibration sample
  and the stochasticity of the training.
- `seed_001`, ...: the nominal data and another seed.  Their spread is the training's stochasticity alone, a part of the
  replicas' spread.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from calorefine.errors import ConfigError, FileError, nearest
from calorefine.io.provenance import digest
from calorefine.weights import Replica

MemberKind = Literal["nominal", "replica", "seed"]
KINDS: tuple[MemberKind, ...] = ("nominal", "replica", "seed")
CHECKPOINT, RECORD = "best.ckpt", "member.json"
SHARED = {
    "config_sha256": "with another configuration",
    "data_sha256": "on other data",
}  # in the records of all members


@dataclass(frozen=True)
class Member:
    """One generator of an ensemble.

    Args:
        kind: which sort.
        index: its number, from 1; 0 for the nominal one.
    """

    kind: MemberKind
    index: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.kind if self.kind == "nominal" else f"{self.kind}_{self.index:03d}"

    @classmethod
    def named(cls, name: str) -> Member:
        """Return the member of this name.

        Raises:
            ConfigError: there is no such name.
        """
        kind, _, index = name.partition("_")
        member = cls(cast("MemberKind", kind), int(index) if index.isdecimal() else 0)
        if kind not in KINDS or member.name != name or (member.index == 0) != (kind == "nominal"):
            raise ConfigError(f"member '{name}' found, expected nominal, replica_001, ..., or seed_001, ...")
        return member

    def seed(self, nominal: int) -> int:
        """Seed of its training, from the nominal one's."""
        if self.kind == "nominal":
            return nominal
        words = [nominal, KINDS.index(self.kind) - 1, self.index]
        return int(np.random.SeedSequence(words).generate_state(1)[0] // 2)

    def replica(self, nominal: Replica) -> Replica:
        """Which bootstrap copy of the sample it is trained on."""
        return Replica(self.index if self.kind == "replica" else 0, nominal.seed, nominal.refit)


def alike(members: Sequence[Member]) -> list[list[Member]]:
    """Members with batches of the same size, which can train side by side: those on all events, and replicas."""
    parts = [[member for member in members if (member.kind == "replica") is which] for which in (False, True)]
    return [part for part in parts if part]


def planned(replicas: int, seeds: int) -> list[Member]:
    """All members of an ensemble, the nominal one first.

    Raises:
        ConfigError: negative numbers.
    """
    if replicas < 0 or seeds < 0:
        raise ConfigError(f"replicas {replicas} and seeds {seeds} found, expected 0 or more")
    counts: dict[MemberKind, int] = {"replica": replicas, "seed": seeds}
    return [Member("nominal", 0), *(Member(kind, k + 1) for kind, n in counts.items() for k in range(n))]


def differs(record: Mapping[str, Any], expected: Mapping[str, str | None]) -> str:
    """In what a member was trained otherwise than expected, by the digests that are `SHARED`; nothing if in none."""
    different = [key for key, value in expected.items() if record.get(key) != value]
    told = "" if not different or different[0] in record else " (its record doesn't tell which)"
    return f"{SHARED[different[0]]}{told}" if different else ""


@dataclass(frozen=True)
class Ensemble:
    """The finished members in a folder.

    Args:
        folder: where `calorefine ensemble` put them.
        records: what is known of each, by name, in the order nominal, replicas, seeds.
    """

    folder: Path
    records: dict[str, dict[str, Any]]

    @classmethod
    def load(cls, folder: str | Path, *, complete: bool = True) -> Ensemble:
        """Find the members.

        Args:
            folder: of the ensemble.
            complete: whether the nominal member has to be there.

        Raises:
            FileError: there is no such folder, or no nominal member in it.
            ConfigError: members were trained with different configurations, or on different data.
        """
        folder = Path(folder)
        if not folder.is_dir():
            siblings = [str(path) for path in folder.parent.glob("*") if path.is_dir()]
            raise FileError(f"{folder}: no such folder{nearest(str(folder), siblings)}")
        records = {path.parent.name: json.loads(path.read_text()) for path in folder.glob(f"*/{RECORD}")}
        if complete and "nominal" not in records:
            names = ", ".join(sorted(records)) or "no member"
            raise FileError(f"{folder}: {names} found, expected a nominal one; run 'calorefine ensemble' to its end")
        first = records.get("nominal", next(iter(records.values()), {}))
        for name, record in records.items():
            if otherwise := differs(record, {key: first.get(key) for key in SHARED}):
                raise ConfigError(f"{folder}: '{name}' was trained {otherwise} than '{first['name']}'; train it anew")
        ordered = sorted(records.items(), key=lambda item: (KINDS.index(item[1]["kind"]), item[1]["index"]))
        return cls(folder, dict(ordered))

    def checkpoint(self, name: str) -> Path:
        """Checkpoint of a member.

        Raises:
            ConfigError: there is no such one, or it is not the one that the member's training left.
        """
        if name not in self.records:
            raise ConfigError(f"{self.folder}: there is no member '{name}'{nearest(name, self.records)}")
        path = self.folder / name / CHECKPOINT
        if (found := digest(path)) != (expected := self.records[name]["checkpoint_sha256"]):
            msg = f"{path}: has SHA-256 {found[:12]}, expected {expected[:12]} as in {RECORD} beside it; train it anew"
            raise ConfigError(msg)
        return path

    def names(self, kind: MemberKind) -> list[str]:
        """Names of the members of this kind, in order."""
        return [name for name, record in self.records.items() if record["kind"] == kind]
