"""Engine records: what was built from which bundle, with what, and whether it still fits.

Reading one takes milliseconds whatever the size of the engines: sizes are compared, not contents.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import DyCokeError
from .atomic import atomic_write
from .files import check_parts, open_bundle
from .manifest import Manifest, Part
from .paths import RECORD, engine_directory


class Record(BaseModel):
    """What every record says: of which bundle it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    bundle_hash: str


R = TypeVar("R", bound=Record)


class EngineRecord(Record):
    """engines/<target>/record.json. options: what the engine was built for.

    sm: 90 for compute capability 9.0; plugin_abi: of the plugin library (runtime/trtllm/plugin.py);
    files: every file of the engine directory by its path there. All empty for the target `cpu`.
    """

    target: str
    backend: Literal["native", "trtllm"]
    tokens_per_block: int = Field(gt=0)
    kv_tokens: int = Field(gt=0)
    max_batch: int = Field(gt=0)
    versions: dict[str, str]
    options: dict[str, Any] = {}
    sm: int | None = None
    tensorrt: str | None = None
    tensorrt_llm: str | None = None
    plugin_abi: int | None = None
    files: dict[str, Part] = {}


@dataclass(frozen=True)
class Installed:
    """What a machine has; None is not there or not known, and is not compared."""

    sm: int | None = None
    tensorrt: str | None = None
    tensorrt_llm: str | None = None
    plugin_abi: int | None = None


def write_record(directory: Path, record: Record) -> Path:
    """Writes the record of an engine directory atomically; returns its path."""
    path = directory / RECORD
    atomic_write(path, record.model_dump_json(indent=2) + "\n")
    return path


def parse_record(kind: type[R], path: Path, absent: str, again: str) -> R:
    """The record in the file `path`. Raises DyCokeError where it is missing, with what that means
    (`absent`), or not readable; `again`: the command that builds it."""
    try:
        return kind.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise DyCokeError(f"{path} is missing, so {absent}; {again}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DyCokeError(f"{path}: not readable ({error}); {again}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DyCokeError(f"{path}: {where}: {first['msg']}; {again}") from None


def check_origin(path: Path, record: Record, manifest: Manifest, again: str) -> None:
    """Raises DyCokeError for a record of another bundle."""
    expected = manifest.identity
    if record.bundle_hash != expected:
        raise DyCokeError(
            f"{path}: built from bundle {record.bundle_hash[:12]}, this one is {expected[:12]}; "
            f"{again}"
        )


def read_record(
    directory: Path,
    manifest: Manifest,
    bundle: Path,
    *,
    installed: Installed | None = None,
    hashes: bool = False,
) -> EngineRecord:
    """The record of `directory`, checked against its bundle, its files and what is `installed`.

    hashes: also read every byte of every file. Raises DyCokeError: what, where, both values, and
    the command that builds again.
    """
    path = directory / RECORD
    again = f"run: dycoke build {bundle} --target {directory.name}"
    record = parse_record(EngineRecord, path, "nothing was built there", again)
    check_origin(path, record, manifest, again)
    _check_installed(path, record, installed or Installed(), again)
    check_parts(directory, record.files, RECORD, again, hashes=hashes)
    return record


def open_build(
    bundle: Path, build: str, *, installed: Installed | None = None
) -> tuple[Manifest, EngineRecord]:
    """A bundle, and the record of what `dycoke build --target build` made of it; raises what
    `open_bundle` and `read_record` do."""
    manifest = open_bundle(bundle)
    directory = engine_directory(bundle, build)
    return manifest, read_record(directory, manifest, bundle, installed=installed)


def _check_installed(path: Path, record: EngineRecord, here: Installed, again: str) -> None:
    """An engine runs on its own architecture, TensorRT release and plugin ABI, and nowhere else."""
    compared = (
        ("GPU architecture", record.sm, here.sm, "sm_{}"),
        ("TensorRT", record.tensorrt, here.tensorrt, "{}"),
        ("TensorRT-LLM", record.tensorrt_llm, here.tensorrt_llm, "{}"),
        ("plugin ABI", record.plugin_abi, here.plugin_abi, "{}"),
    )
    for what, built, installed, style in compared:
        if built is not None and installed is not None and built != installed:
            raise DyCokeError(
                f"{path}: built for {what} {style.format(built)}, here it is "
                f"{style.format(installed)}; {again}, here"
            )
