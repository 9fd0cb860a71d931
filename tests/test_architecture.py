"""The shape of the project: arrows between folders point one way, and `--help` stays light."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import dycoke_trt
import pytest

ROOT = Path(__file__).parents[1]
# A folder may import itself and what stands on a line above it.
LAYERS = [
    ["core"],
    ["compress", "kernels"],
    ["cost"],
    ["arch"],
    ["bundle"],
    ["export", "runtime"],
    ["engines"],
    ["verify", "triton_repo", "demo"],
    ["eval"],
    ["bench"],
    ["cli"],
]
RANK = {folder: rank for rank, folders in enumerate(LAYERS) for folder in folders}
SERVING = {"runtime", "engines", "triton_repo"}  # needs what was exported, and no exporter
TORCH_ONLY = {
    "core": {"torch"},
    "cost": set(),
    "compress": {"torch"},
    "arch": {"torch"},
    "kernels": {"torch", "triton"},
}
SOURCES = [p for folder in RANK for p in sorted((ROOT / folder).rglob("*.py"))]

# By name below the root: "core.pool", and "core" for its __init__.
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCES
}


def imports(path: Path) -> list[tuple[int, str]]:
    """(level, module) of every import statement, nested ones too."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append((node.level, node.module or ""))
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_point_one_way(path: Path) -> None:
    folder, depth = path.relative_to(ROOT).parts[0], len(path.relative_to(ROOT).parts)
    for level, module in imports(path):
        if level == depth:  # relative to the package root: another folder
            target = module.split(".")[0]
            assert target == folder or RANK[target] < RANK[folder], f"{folder} imports {target}"
            assert folder not in SERVING or target != "export", f"{folder} imports an exporter"
        elif level == 0 and folder in TORCH_ONLY:
            name = module.split(".")[0]
            assert name in sys.stdlib_module_names | TORCH_ONLY[folder], f"{folder}: {name}"


def project_imports(path: Path) -> set[str]:
    """Modules of this project that a file imports anywhere, functions and type checks included."""
    folder = path.relative_to(ROOT).parent.parts
    targets = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            parts = [*folder[: len(folder) + 1 - node.level], *(node.module or "").split(".")]
            base = ".".join(part for part in parts if part)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                targets.add(full if full in MODULES else base)
    return targets & MODULES.keys()


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A way from a module back to itself, empty if there is none."""
    done: set[str] = set()

    def walk(module: str, way: list[str]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for target in sorted(graph[module]):
            if back := walk(target, [*way, module]):
                return back
        done.add(module)
        return []

    return next((back for module in sorted(graph) if (back := walk(module, []))), [])


def test_imports_go_in_no_circle() -> None:
    """Not even one that an import inside a function hides until it runs."""
    graph = {name: project_imports(path) for name, path in MODULES.items()}
    assert circle(graph) == []
    assert graph["runtime.scheduler"] >= {"runtime.line", "runtime.steps", "core.errors"}
    assert "runtime.native.cuda" in graph["runtime.native.load"]  # from within a function


def test_a_circle_is_seen() -> None:
    graph = {"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set[str]()}
    assert circle(graph) == []
    assert circle(graph | {"d": {"b"}}) == ["b", "d", "b"]
    assert circle({"a": {"a"}}) == ["a", "a"]


def test_every_folder_is_in_the_layers() -> None:
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert packages <= set(RANK)


def test_the_installed_package_is_this_checkout() -> None:
    assert Path(dycoke_trt.__file__).parent == ROOT


def test_no_second_copy_is_loaded() -> None:
    copies = [name for name in sys.modules if name.endswith("core.ttm")]
    assert set(copies) <= {"dycoke_trt.core.ttm"}


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['dycoke', '--help']\n"
        "from dycoke_trt.cli.main import run\n"
        "try: run()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'tensorrt', 'onnxruntime', 'transformers', 'numpy', 'av', 'triton'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "floors" in done.stdout


def test_the_page_for_developers_is_the_tree() -> None:
    page = (ROOT / "docs" / "development.md").read_text()
    line = " ".join(line.strip() for line in page.splitlines() if line.startswith("    "))
    assert [re.findall(r"\w+", folders) for folders in line.split("<-")] == LAYERS
    paths = re.findall(r"`([\w.]+/[\w./]*)`", page)
    assert len(paths) > 50
    assert not [path for path in paths if not (ROOT / path).exists()]
