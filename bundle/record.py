"""Engine records: what was built from which bundle, with what, and whether it still fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..core.errors import DyCokeError
from .files import atomic_write, bundle_hash
from .manifest import Manifest

FILE = "record.json"


class EngineRecord(BaseModel):
    """engines/<target>/record.json. options: what the engine was built for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    target: str
    bundle_hash: str
    backend: Literal["native", "trtllm"]
    tokens_per_block: int = Field(gt=0)
    kv_tokens: int = Field(gt=0)
    max_batch: int = Field(gt=0)
    versions: dict[str, str]
    options: dict[str, Any] = {}


def write_record(directory: Path, record: EngineRecord) -> Path:
    """Writes the record of an engine directory atomically; returns its path."""
    path = directory / FILE
    atomic_write(path, record.model_dump_json(indent=2) + "\n")
    return path


def read_record(directory: Path, manifest: Manifest, bundle: Path) -> EngineRecord:
    """The record of `directory`, checked against the bundle it is used with.

    Raises DyCokeError: what, where, both values, and the command that builds again.
    """
    path = directory / FILE
    again = f"run: dycoke build {bundle} --target {directory.name}"
    try:
        record = EngineRecord.model_validate_json(path.read_text())
    except FileNotFoundError:
        raise DyCokeError(f"{path} is missing, so nothing was built there; {again}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DyCokeError(f"{path}: not readable ({error}); {again}") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DyCokeError(f"{path}: {where}: {first['msg']}; {again}") from None
    expected = bundle_hash(manifest)
    if record.bundle_hash != expected:
        raise DyCokeError(
            f"{path}: built from bundle {record.bundle_hash[:12]}, this one is {expected[:12]}; "
            f"{again}"
        )
    return record
