"""Fuzzing: thousands of valid and damaged inputs, none of which may crash, hang or give wrong values silently.

Kinds of cases, in `tests/fuzz`, where each says what counts:

    expressions   random ones against their value by numpy; texts that mean nothing
    root          ROOT files: random valid ones against what was written; damaged ones
    checkpoints   damaged, changed and foreign files
    reweighters   the same
    configs       changed configurations of `lightning fit` and of verbs, up to where training would start
    provenance    changed provenances in ROOT files
    showers       HDF5 files: random valid ones against what was written; damaged ones
    binning       XML of a binning, likewise

    python benchmarks/fuzz.py --json fuzz.json         # 12 000 cases in 2 processes
    python benchmarks/fuzz.py --planted                # twelve planted faults have to be found

A case runs in a worker process, which counts as `crashes` if a signal ends it, and as `hangs` if it is silent for five
minutes; a case that takes 10 s of processor time is ended there, and is a `hang`.  `refused` are errors for valid
inputs; `undetectable` is damage of which no reader could know.  Each fault is printed with the number of its case,
which gives the same case again:

    python benchmarks/fuzz.py --only root --first 1234 --cases 1
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests" / "fuzz"))

SHARES = {
    "expressions": 3600,
    "root": 2400,
    "checkpoints": 1000,
    "reweighters": 1000,
    "configs": 1000,
    "provenance": 1000,
    "showers": 1500,
    "binning": 500,
}
SILENT_S = 300.0
MEMORY_BYTES = 8 << 30


def work(connection: Connection, kind: str, first: int, stop: int, seed: int, planted: str | None) -> None:
    """Run the cases of a kind in this process, and tell what comes of each."""
    import resource

    import fuzz_kinds
    import torch
    from fuzz_harness import generator, judged

    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    if planted:
        fuzz_kinds.plant(planted)
    case = fuzz_kinds.KINDS[kind]()
    for number in range(first, stop):
        outcome = judged(case, generator(seed, kind, number))
        connection.send((number, outcome.result, outcome.what))
    connection.send(None)


class Worker:
    """A process with a share of the cases, started again after the one that ended it."""

    def __init__(self, kind: str, first: int, stop: int, seed: int, planted: str | None = None) -> None:
        """Start with the first case."""
        self.kind, self.next, self.stop, self.seed, self.planted = kind, first, stop, seed, planted
        self.start()

    def start(self) -> None:
        """Go on with the next case."""
        context = get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        arguments = (theirs, self.kind, self.next, self.stop, self.seed, self.planted)
        self.process = context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()
        self.heard = time.monotonic()

    def results(self) -> tuple[list[tuple[int, str, str]], bool]:
        """What it has told since, and whether it is done."""
        found = []
        try:
            while self.connection.poll():
                self.heard = time.monotonic()
                if (told := self.connection.recv()) is None:
                    self.process.join()
                    return found, True
                found.append(told)
                self.next = told[0] + 1
        except EOFError:
            self.process.join()
            found.append((self.next, "crash", f"the process ended with {self.process.exitcode}"))
            return found, self._again()
        if time.monotonic() - self.heard > SILENT_S:
            self.process.kill()
            self.process.join()
            found.append((self.next, "hang", f"nothing for {SILENT_S:g} s"))
            return found, self._again()
        return found, False

    def _again(self) -> bool:
        """Start a process with the cases after the one that ended this one; tell if there are none."""
        self.next += 1
        if self.next < self.stop:
            self.start()
        return self.next >= self.stop


def run(
    jobs: list[tuple[str, int, int]], seed: int, workers: int, planted: str | None = None
) -> dict[str, Counter[str]]:
    """Run shares of cases; print each fault, return the results by kind."""
    from fuzz_harness import FAULTS

    counts: dict[str, Counter[str]] = {kind: Counter() for kind, _, _ in jobs}
    waiting, active = list(jobs), []
    while waiting or active:
        while waiting and len(active) < workers:
            active.append(Worker(*waiting.pop(0), seed, planted))
        wait([worker.connection for worker in active], timeout=1.0)
        for worker in list(active):
            results, done = worker.results()
            for number, result, what in results:
                counts[worker.kind][result] += 1
                if result in FAULTS and not planted:
                    print(f"{worker.kind} {number} {result}: {what}", flush=True)
            if done:
                active.remove(worker)
    return counts


def shares(kinds: list[str], first: int, cases: int, workers: int) -> list[tuple[str, int, int]]:
    """Consecutive cases of each kind, in parts for the workers."""
    whole = sum(SHARES[kind] for kind in kinds)
    jobs = []
    for kind in kinds:
        n = max(1, round(cases * SHARES[kind] / whole))
        size = -(-n // workers)
        jobs += [(kind, at, min(at + size, first + n)) for at in range(first, first + n, size)]
    return jobs


def flat(counts: dict[str, Counter[str]]) -> dict[str, Any]:
    """All numbers by one name each."""
    from fuzz_harness import RESULTS

    plural = {"error": "errors", "crash": "crashes", "hang": "hangs"}
    total = sum(counts.values(), Counter())
    out: dict[str, Any] = {"cases": total.total()}
    out |= {plural.get(result, result): total[result] for result in RESULTS}
    for kind, one in counts.items():
        out |= {f"{kind}_cases": one.total()}
        out |= {f"{kind}_{plural.get(result, result)}": one[result] for result in RESULTS}
    return out


def find_planted(seed: int, workers: int) -> int:
    """Run with each planted fault in turn; the status is 1 if one isn't found."""
    from fuzz_harness import FAULTS
    from fuzz_planted import PLANTED

    missed = 0
    for name, (kind, cases, _) in PLANTED.items():
        counts = run(shares([kind], 0, cases, workers), seed, workers, planted=name)[kind]
        found = {result: counts[result] for result in FAULTS if counts[result]}
        print(f"{name}: {f'found, {found}' if found else 'NOT FOUND'} in {counts.total()} cases", flush=True)
        missed += not found
    return int(missed > 0)


def main() -> int:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=list(SHARES), default=list(SHARES))
    parser.add_argument("--planted", action="store_true", help="switch on one planted fault after the other")
    given = parser.parse_args()
    if given.planted:
        return find_planted(given.seed, given.workers)
    start = time.monotonic()
    out = flat(run(shares(given.only, given.first, given.cases, given.workers), given.seed, given.workers))
    out["seconds"] = round(time.monotonic() - start, 1)
    print(json.dumps(out, indent=1))
    if given.json:
        given.json.write_text(json.dumps(out, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
