"""Checks the bytes of a bundle's parts while they are loaded, so that a damaged one never serves.

Hashing runs in threads of its own beside the loading, one a file, over the same pages of the
system's cache: a file is read from the disk once, and hashing is hidden where reading or converting
takes as long. docs/export.md has figures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from .files import check_parts
from .manifest import Part, read_manifest
from .paths import MANIFEST

_MOST_THREADS = 8


@contextmanager
def checked_parts(bundle: Path, *prefixes: str) -> Iterator[None]:
    """While the block loads parts of `bundle` whose names begin so, hashes them against the
    manifest. Raises DyCokeError for a damaged one, also where the block itself failed over it."""
    manifest = read_manifest(bundle)
    chosen = {name: part for name, part in manifest.parts.items() if name.startswith(prefixes)}
    with checked_while_loading(bundle, chosen, MANIFEST, "copy the bundle again, or export again"):
        yield


@contextmanager
def checked_while_loading(
    directory: Path, parts: Mapping[str, Part], said_in: str, remedy: str
) -> Iterator[None]:
    """The same for any directory. said_in: the file that lists `parts`; remedy: what to do."""

    def check(name: str) -> None:
        check_parts(directory, {name: parts[name]}, said_in, remedy, hashes=True)

    with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), "hash") as threads:
        checks = [threads.submit(check, name) for name in parts]
        try:
            yield
        finally:
            for result in checks:
                result.result()  # its error hides that of the block, which it explains
