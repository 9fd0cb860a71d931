"""Files of a bundle: hashes, checks, and writing that leaves either everything or nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..core.errors import DyCokeError
from .manifest import FILE, Manifest, Part, read_manifest


def describe_parts(directory: Path) -> dict[str, Part]:
    """Size and sha256 of every file below `directory`, but for the manifest and engines/."""
    return {
        name: Part(size=(directory / name).stat().st_size, sha256=sha256(directory / name))
        for name in sorted(
            str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
        )
        if name != FILE and not name.startswith("engines/")
    }


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bundle_hash(manifest: Manifest) -> str:
    """Identity of a bundle: engines record it, and are refused for another one."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()


def open_bundle(bundle: Path, *, hashes: bool = False) -> Manifest:
    """Reads the manifest and checks that every part is there and has its size.

    hashes: also read every byte. Raises DyCokeError naming the part, both values and the remedy.
    """
    manifest = read_manifest(bundle)
    for name, part in manifest.parts.items():
        path = bundle / name
        if not path.is_file():
            raise DyCokeError(f"{path} is missing; export again")
        size = path.stat().st_size
        if size != part.size:
            raise DyCokeError(f"{path} has {size} bytes, {FILE} says {part.size}; export again")
        if hashes and (found := sha256(path)) != part.sha256:
            raise DyCokeError(
                f"{path} has sha256 {found[:12]}..., {FILE} says {part.sha256[:12]}...; "
                "export again"
            )
    return manifest


@contextmanager
def atomic_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary directory beside `target` that becomes it, or vanishes with the exception.

    An empty directory may stand in its place, and with `replace` an old bundle. Raises DyCokeError
    for anything else that does, and if nothing can be written there.
    """
    old_bundle = (target / FILE).is_file()
    if target.exists() and not (replace and old_bundle) and not _is_empty_directory(target):
        force = ", or use --force to replace the old bundle" if old_bundle else ""
        raise DyCokeError(f"{target} exists already; choose another directory{force}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise DyCokeError(f"{target}: cannot be written ({error.strerror})") from None
    try:
        yield work
        work.chmod(0o755)  # mkdtemp makes it private
        if old_bundle:
            old = work.with_name(work.name + ".old")
            target.rename(old)
            work.rename(target)
            shutil.rmtree(old)
        else:
            work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def atomic_write(path: Path, text: str) -> None:
    """Writes a file that readers see either as it was or complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(text)
        Path(name).chmod(0o644)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
