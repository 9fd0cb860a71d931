"""The tests that `make check` runs: tests/core, and those of what changed since main.

Prints their paths; on stderr, why each. A test belongs to a module if it is named after it, in the
folder that mirrors the module's, or lies there and imports it. Tests elsewhere that import it are
counted only: they are for `make test`.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ALWAYS = [Path("tests/core"), Path("tests/test_architecture.py")]
ELSEWHERE = ("device", "inside")  # other tests start these in processes of their own


def git(*args: str) -> list[str]:
    done = subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def changed_files() -> list[Path]:
    """Against where this branch left main, with what is not committed; on main, against HEAD."""
    base = (git("merge-base", "HEAD", "main") or ["HEAD"])[0]
    names = git("diff", "--name-only", base) + git("ls-files", "--others", "--exclude-standard")
    return [Path(name) for name in sorted(set(names)) if name.endswith(".py")]


def imports(test: Path, module: Path) -> bool:
    text = (ROOT / test).read_text()
    parent = "dycoke_trt." + ".".join(module.parts[:-1]) if len(module.parts) > 1 else "dycoke_trt"
    return any(
        line.startswith(f"from {parent}.{module.stem} import ")
        or (line.startswith(f"from {parent} import ") and module.stem in line.split()[3:])
        for line in map(str.strip, text.replace(",", " ").splitlines())
    )


def tests_of(file: Path, tests: list[Path]) -> tuple[list[Path], int]:
    """Tests that belong to a changed file, and how many others import it."""
    if file in tests:
        return [file], 0
    mirror = "tests" / file.parent.relative_to("tests" if file.parts[0] == "tests" else "")
    users = [test for test in tests if imports(test, file)]
    near = [test for test in tests if test == mirror / f"test_{file.stem}.py"]
    near += [test for test in users if test not in near and test.parent == mirror]
    return near, len(set(users) - set(near))


if __name__ == "__main__":
    tests = [path.relative_to(ROOT) for path in sorted(ROOT.glob("tests/**/test_*.py"))]
    tests = [test for test in tests if test.parent.name not in ELSEWHERE]
    chosen = dict.fromkeys(ALWAYS)
    for file in changed_files():
        near, others = tests_of(file, tests)
        chosen |= dict.fromkeys(test for test in near if ALWAYS[0] not in test.parents)
        names = ", ".join(test.name for test in near) or "no test of its own"
        beyond = f"; {others} more files for make test" if others else ""
        print(f"{file}: {names}{beyond}", file=sys.stderr)
    print(*chosen)
