"""Which of a server's endpoints clients may use: all that asking needs, nothing that rules it.

Triton restricts a category of endpoints to requests that carry a header, on HTTP and on gRPC
(docs/customization_guide/inference_protocols.md, "Limit Endpoint Access", read at r24.10). What is
restricted here lets a client write into the memory of models, load and unload them, name files to
write to, or silence the log; docs/serving.md says what each category is.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Sequence

from ..core.errors import DyCokeError

RESTRICTED = ("shared-memory", "model-repository", "logging", "trace")
HTTP = "http"  # beyond this machine, on versions whose HTTP server can be crashed (weaknesses.py)
OPENABLE = (*RESTRICTED, HTTP)
HEADER = "dycoke-key"  # on HTTP; gRPC wants the prefix below before it
GRPC_PREFIX = "triton-grpc-protocol-"
KEY_VARIABLE = "DYCOKE_ADMIN_KEY"
# From this version on clients' shared memory is off unless an option allows it.
_ALLOW_SHM_SINCE = (2, 69)


def parse_open(text: str) -> tuple[str, ...]:
    """'shared-memory,trace' or 'all' -> categories. Raises DyCokeError for an unknown one."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if "all" in names:
        return OPENABLE
    for name in names:
        if name not in OPENABLE:
            raise DyCokeError(
                f"--open {name!r} is not allowed; allowed: all, or some of {', '.join(OPENABLE)}"
            )
    return names


def new_key() -> str:
    """DYCOKE_ADMIN_KEY, else one drawn for this start."""
    return os.environ.get(KEY_VARIABLE) or secrets.token_hex(16)


def access_options(opened: Collection[str], key: str, version: tuple[int, ...]) -> Sequence[str]:
    """Options of a tritonserver of that version. key: what the header has to carry."""
    closed = [name for name in RESTRICTED if name not in opened]
    group = f"{','.join(closed)}:{HEADER}={key}"
    options = [f"--http-restricted-api={group}", f"--grpc-restricted-protocol={group}"]
    allowed = ["--allow-client-shm=true"] if "shared-memory" in opened else []
    return [*(options if closed else []), *(allowed if version >= _ALLOW_SHM_SINCE else [])]
