"""The front: sets up an environment and runs one thing in it.  Needs Python 3.11 or later and nothing else.

python3 tasks.py run     set up; train, sample and compare on the embedded sample
python3 tasks.py test    set up; style, types and tests
python3 tasks.py chains  set up; the longer tests: all pages of the documentation, whole examples, kills
python3 tasks.py setup   only set up, in .venv
python3 tasks.py lowest  set up .venv-lowest, with the lowest versions that pyproject.toml promises; tests
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TESTS = ["python", "-m", "pytest", "-n", "2", "--dist", "loadgroup"]
OF_OLD = ["-W", "ignore::DeprecationWarning", "-W", "ignore::PendingDeprecationWarning", "-W", "ignore::FutureWarning"]
TASKS = {
    "setup": [],
    "run": [["python", "examples/01_main_job.py"]],
    "test": [
        ["ruff", "check", "."],
        ["ruff", "format", "--check", "."],
        ["mypy"],
        ["lint-imports"],
        TESTS,
    ],
    "chains": [[*TESTS, "-m", "chain"]],
    "lowest": [[*TESTS, *OF_OLD]],
}


def setup(task: str) -> Path:
    """Create the environment and install the tested versions, or the lowest ones; return the folder of its programs."""
    venv = ROOT / (".venv-lowest" if task == "lowest" else ".venv")
    programs = venv / ("Scripts" if os.name == "nt" else "bin")
    if not programs.is_dir():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip, package = [str(programs / "python"), "-m", "pip", "install", "--quiet"], ["--editable", ".[test]"]
    if task == "lowest":  # pip has no such choice
        subprocess.run([*pip, "uv"], cwd=ROOT, check=True)
        pip = [str(programs / "uv"), "pip", "install", "--python", str(venv), "--resolution", "lowest-direct"]
    else:
        pip += ["--constraint", "constraints.txt"]
    subprocess.run([*pip, *package], cwd=ROOT, check=True)
    return programs


def environment(task: str) -> dict[str, str]:
    """Tests run in two processes, each of one thread: more would wait for each other on two cores."""
    return {**os.environ, **({"OMP_NUM_THREADS": "1"} if task in ("test", "chains", "lowest") else {})}


def main() -> None:
    """Run the task named on the command line."""
    if len(sys.argv) != 2 or sys.argv[1] not in TASKS:
        sys.exit(__doc__)
    if sys.version_info < (3, 11):  # noqa: UP036 (runs before pip has checked the version)
        sys.exit(f"calorefine needs Python 3.11 or later, this is {sys.version.split()[0]}")
    task = sys.argv[1]
    programs = setup(task)
    for command in TASKS[task]:
        sys.stdout.write(f"+ {' '.join(command)}\n")
        sys.stdout.flush()
        finished = subprocess.run(
            [str(programs / command[0]), *command[1:]], cwd=ROOT, env=environment(task), check=False
        )
        if finished.returncode:
            sys.exit(finished.returncode)


if __name__ == "__main__":
    main()
