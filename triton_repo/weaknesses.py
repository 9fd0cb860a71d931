"""Known holes of tritonserver by version, and what shields a server that `dycoke serve` starts.

Source: NVIDIA's security bulletins (github.com/NVIDIA/product-security, the CSAF file of each
number), which name container releases; a release is a server version by the server's tags. Those
about backends that nothing here uses are left out. The two code changes that rows 2.59.1 stand for
were read in the server's history (#8305: no stack allocation per chunk of HTTP; #8273: regions of
the Python backend cannot be registered).
"""

from __future__ import annotations

from dataclasses import dataclass

_SHM = "clients cannot register shared memory (unless --open shared-memory)"
_CONTROL = "model control needs a key (unless --open model-repository)"
_LOOPBACK = "HTTP listens on loopback only (unless --open http)"
_NOTHING = "nothing here: use a newer server"


@dataclass(frozen=True)
class Weakness:
    """fixed: the first server version without it, of container `release`. http: through HTTP."""

    fixed: tuple[int, ...]
    release: str
    bulletin: int
    cves: str
    what: str
    shield: str
    http: bool = False


WEAKNESSES = (
    Weakness(
        (2, 58, 0), "25.05", 5687, "CVE-2025-23323, 23324, 23325, 23326, 23327",
        "invalid requests end the server", _NOTHING,
    ),
    Weakness(
        (2, 59, 0), "25.06", 5687, "CVE-2025-23322, 23331",
        "a stream that is cancelled before it is processed, or a huge size, ends the server",
        _NOTHING,
    ),
    Weakness(
        (2, 59, 1), "25.07", 5687, "CVE-2025-23310, 23311, 23317",
        "HTTP in small chunks ends the server or runs code in it", _LOOPBACK, http=True,
    ),
    Weakness(
        (2, 59, 1), "25.07", 5687, "CVE-2025-23318, 23319, 23320, 23333, 23334",
        "the memory of the Python models can be registered, read and written", _SHM,
    ),
    Weakness(
        (2, 60, 0), "25.08", 5691, "CVE-2025-23316",
        "a model's name in model control runs code", _CONTROL,
    ),
    Weakness(
        (2, 60, 0), "25.08", 5691, "CVE-2025-23329",
        "the memory of the Python models can be found and written", _SHM,
    ),
    Weakness(
        (2, 61, 0), "25.09", 5723, "CVE-2025-33202",
        "very large payloads end the server", _LOOPBACK, http=True,
    ),
    Weakness(
        (2, 62, 0), "25.10", 5734, "CVE-2025-33201, 33211",
        "very large payloads and wrong sizes end the server", _NOTHING,
    ),
    Weakness(
        (2, 65, 0), "26.01", 5790, "CVE-2026-24158",
        "a large compressed payload exhausts memory", _LOOPBACK, http=True,
    ),
    Weakness(
        (2, 66, 0), "26.02", 5816, "CVE-2026-24146, 24173, 24174, 24175",
        "malformed requests and headers end the server", _NOTHING,
    ),
    Weakness(
        (2, 67, 0), "26.03", 5828, "CVE-2026-24206, 24207, 24208, 24209, 24210",
        "restrictions can be passed by; malformed requests end the server", _NOTHING,
    ),
    Weakness(
        (2, 68, 0), "26.04", 5848, "CVE-2026-24264, 24266",
        "highly compressed data exhausts memory", _LOOPBACK, http=True,
    ),
    Weakness(
        (2, 69, 0), "26.05", 5853, "CVE-2026-47476 to 47482",
        "requests exhaust memory or end the server", _NOTHING,
    ),
    Weakness(
        (2, 70, 0), "26.06", 5865, "CVE-2026-47606, 47627 to 47630",
        "paths outside the repository; requests without limits", _CONTROL,
    ),
)  # fmt: skip


def weaknesses_of(version: tuple[int, ...]) -> list[Weakness]:
    """Those that the server version still has."""
    return [weakness for weakness in WEAKNESSES if version < weakness.fixed]


def http_is_weak(version: tuple[int, ...]) -> bool:
    """Whether a peer that reaches the server's HTTP port can end it, or worse."""
    return any(weakness.http for weakness in weaknesses_of(version))


def advice(version: tuple[int, ...]) -> str:
    """One line for the operator of such a server; "" where nothing is known of it."""
    known = weaknesses_of(version)
    if not known:
        return ""
    bare = [weakness.cves for weakness in known if weakness.shield == _NOTHING]
    covered = [weakness.cves for weakness in known if weakness.shield != _NOTHING]
    return (
        f"holes known of this version, all closed in {known[-1].release} (see dycoke doctor): "
        f"shielded {'; '.join(covered)}; not shielded {'; '.join(bare)}"
    )
