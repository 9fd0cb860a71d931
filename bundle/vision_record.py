"""The record of a vision engine by TensorRT for RTX: engines/rtx/record.json.

It stands beside the records of LLM builds (record.py): one engine serves several GPUs, and the LLM
behind it may be built by anything.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from ..core.errors import DyCokeError
from .files import check_parts
from .manifest import Manifest, Part
from .paths import RECORD, rtx_directory
from .record import Record, check_origin, parse_record


class VisionRecord(Record):
    """library, version: what compiled it, and what alone loads it. targets, sms: GPUs it is for, as
    named and as compute capabilities (89 for 8.9). profiles: (least, best, most) shapes of
    `frames`. weights: `stripped` has none, and takes them from the bundle when it is loaded.
    activations: bytes of GPU memory a context takes. checked_layers: of the engine, whose types
    were compared with the network's; 0 where the compiler said nothing about them."""

    library: str
    version: str
    targets: list[str] = Field(min_length=1)
    sms: list[int] = Field(min_length=1)
    dtype: str
    profiles: list[tuple[list[int], list[int], list[int]]]
    weights: Literal["included", "stripped"]
    activations: int
    checked_layers: int
    build_seconds: float
    files: dict[str, Part]


def read_vision_record(
    bundle: Path,
    manifest: Manifest,
    *,
    version: str | None = None,
    sm: int | None = None,
    hashes: bool = False,
) -> VisionRecord:
    """The record of `bundle`/engines/rtx, checked against the bundle and its files.

    version: of the library that is to load it; sm: of the GPU; None compares nothing. hashes: also
    read every byte. Raises DyCokeError: what, where, both values, and the command that mends it.
    """
    path = rtx_directory(bundle) / RECORD
    build = f"run: dycoke build {bundle} --vision rtx --target"
    record = parse_record(VisionRecord, path, "no engine was built", f"{build} GPU")
    again = " ".join([build, " --target ".join(record.targets)])
    check_origin(path, record, manifest, again)
    if version is not None and record.version != version:
        raise DyCokeError(
            f"{path}: built by {record.library} {record.version}, here it is {version}; {again}"
        )
    if sm is not None and sm not in record.sms:
        names = ", ".join(f"sm_{known}" for known in record.sms)
        raise DyCokeError(
            f"{path}: built for {names}, this GPU is sm_{sm}; {again} --target this-gpu"
        )
    check_parts(path.parent, record.files, RECORD, again, hashes=hashes)
    return record
