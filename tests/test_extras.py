"""What the extras ask for, all the way down, in the metadata of what is installed here."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]


def numpy_excluders(extra: str, version: str) -> set[str]:
    """Requirements of numpy, reached from the project with `extra`, that exclude `version`."""
    texts = {"": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]
    excluders: set[str] = set()
    seen: set[tuple[str, str]] = set()
    pending = [(PROJECT["name"], ""), (PROJECT["name"], extra)]
    while pending:
        name, of_extra = pending.pop()
        if (name, of_extra) in seen:
            continue
        seen.add((name, of_extra))
        try:
            wanted = texts[of_extra] if name == PROJECT["name"] else requires(name) or []
        except PackageNotFoundError:  # for another platform, or of `trt`
            continue
        for requirement in map(Requirement, wanted):
            if requirement.marker and not requirement.marker.evaluate({"extra": of_extra}):
                continue
            other = canonicalize_name(requirement.name)
            if other == "numpy" and not requirement.specifier.contains(version):
                excluders.add(f"{name}: {requirement}")
            pending += [(other, ""), *((other, inner) for inner in requirement.extras)]
    return excluders


@pytest.mark.parametrize("extra", sorted(PROJECT["optional-dependencies"]))
@pytest.mark.parametrize("version", ["1.26.4", "2.4.6"])
def test_only_the_server_needs_numpy_1(extra: str, version: str) -> None:
    excluders = numpy_excluders(extra, version)
    if version == "2.4.6" and extra in ("server", "dev"):  # `dev` has the server
        assert {text.partition(":")[0] for text in excluders} == {"dycoke-trt", "nvidia-pytriton"}
    else:
        assert excluders == set()
