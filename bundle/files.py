"""Files of a bundle: hashes and checks."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ..core.errors import DyCokeError
from .manifest import Manifest, Part, read_manifest
from .paths import ENGINES, MANIFEST, RECORD


def describe_parts(directory: Path, hashes: Mapping[str, str] | None = None) -> dict[str, Part]:
    """Size and sha256 of every file below `directory`, but for manifest, record and engines/.

    hashes: SHA-256 of what was hashed while it was written, by its path there: not read again.
    """
    known = hashes or {}
    return {
        name: Part(size=path.stat().st_size, sha256=known.get(name) or sha256(path))
        for path in sorted(directory.rglob("*"), key=str)
        if path.is_file()
        and (name := path.relative_to(directory).as_posix()) not in (MANIFEST, RECORD)
        and not name.startswith(f"{ENGINES}/")
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_bundle(bundle: Path, *, hashes: bool = False) -> Manifest:
    """Reads the manifest and checks that every part is there and has its size.

    hashes: also read every byte. Raises DyCokeError naming the part, both values and the remedy.
    """
    manifest = read_manifest(bundle)
    check_parts(bundle, manifest.parts, MANIFEST, "export again", hashes=hashes)
    return manifest


def check_parts(
    directory: Path, parts: Mapping[str, Part], said_in: str, remedy: str, *, hashes: bool
) -> None:
    """Every part is there and has its size, with `hashes` its bytes too.

    said_in: the file that lists them. Raises DyCokeError naming the part, both values and `remedy`.
    """
    for name, part in parts.items():
        path = directory / name
        if not path.is_file():
            raise DyCokeError(f"{path} is missing; {remedy}")
        size = path.stat().st_size
        if size != part.size:
            raise DyCokeError(f"{path} has {size} bytes, {said_in} says {part.size}; {remedy}")
        if hashes and (sha := sha256(path)) != part.sha256:
            raise DyCokeError(
                f"{path} has sha256 {sha[:12]}..., {said_in} says {part.sha256[:12]}...; {remedy}"
            )
