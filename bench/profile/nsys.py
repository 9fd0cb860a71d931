"""NVIDIA Nsight Systems: finds nsys, runs a program under it, reads what it wrote.

Packages differ. NVIDIA's writes .nsys-rep (before 2021.4: .qdrep). Debian's nsys does not find its
own importer and leaves a raw .qdstrm, which QdstrmImporter turns into a report.

nsys 2022.4 fails now and then where other work keeps the cores busy: its processes find each other
by files and semaphores that one looks for before the other has made them ("sem_open: No such file
or directory", "Local Endpoint is not available", "End of file", or no report and exit status 0).
Nothing that a caller sets avoids it, so such a recording is worth a second one: see NsysError.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from ...core.errors import DyCokeError
from ...runtime.stages import DOMAIN

STEADY = "steady state"  # the range whose beginning and end start and stop the recording
_REPORTS = (".nsys-rep", ".qdrep")
_IMPORTERS = (
    "/usr/lib/nsight-systems/host-linux-x64/QdstrmImporter",
    "/opt/nvidia/nsight-systems/*/host-linux-x64/QdstrmImporter",
    "/usr/local/cuda*/nsight-systems*/host-linux-x64/QdstrmImporter",
)
HOW_TO_GET = (
    "on Debian: add the component non-free to the apt sources, then apt-get install "
    "nsight-systems; on Ubuntu: NVIDIA's CUDA repository, package nsight-systems"
)


class NsysError(DyCokeError):
    """A recording that came to nothing, whatever the program did; a second one may succeed."""


@dataclass(frozen=True)
class Nsys:
    """nsys, and its importer where there is one."""

    binary: Path
    importer: Path | None

    def version(self) -> str:
        done = _run([str(self.binary), "--version"], 60)
        return done.stdout.strip().rpartition(" ")[2]

    def record(self, program: Sequence[str], report: Path, *, cuda: bool, timeout: float) -> None:
        """Runs `program` to its end; records while its range `STEADY` is open, children too.

        report: without suffix. Raises NsysError if nsys fails, as it does where the program does,
        and DyCokeError if both take longer than `timeout` seconds.
        """
        # In a graph, kernels of their own: by default nsys shows a graph as one piece.
        trace = ["--trace=nvtx,cuda", "--cuda-graph-trace=node"] if cuda else ["--trace=nvtx"]
        command = [
            str(self.binary), "profile", *trace,
            "--sample=none", "--cpuctxsw=none", "--capture-range=nvtx",
            f"--nvtx-capture={STEADY}@{DOMAIN}", "--kill=none", "--force-overwrite=true",
            f"--output={report}", *program,
        ]  # fmt: skip
        # What nsys leaves in the folder for temporary files, named by process ids, goes with it.
        with TemporaryDirectory(prefix="dycoke-nsys-") as folder:
            # Without the second only registered strings can start a recording.
            more = {"TMPDIR": folder, "NSYS_NVTX_PROFILER_REGISTER_ONLY": "0"}
            done = _run(command, timeout, more)
        if done.returncode:
            raise NsysError(f"{self.binary} failed: {_last_line(done)}")

    def report(self, stem: Path, timeout: float = 600) -> Path:
        """The report that `record` left, imported where nsys could not. Raises NsysError."""
        for suffix in _REPORTS:
            if (importer := stem.with_name(stem.name + suffix)).is_file():
                return importer
        raw = stem.with_name(f"{stem.name}.qdstrm")
        if not raw.is_file():
            raise NsysError(f"{self.binary} left no report at {stem}; was anything recorded?")
        if self.importer is None:
            raise DyCokeError(f"{raw}: nsys left raw data, and there is no QdstrmImporter here")
        target = stem.with_name(f"{stem.name}.nsys-rep")
        done = _run([str(self.importer), "-i", str(raw), "-o", str(target)], timeout)
        if done.returncode or not target.is_file():
            raise NsysError(f"{self.importer} cannot import {raw}: {_last_line(done)}")
        raw.unlink()
        return target

    def export(self, report: Path, timeout: float = 600) -> Path:
        """The report as SQLite beside it."""
        target = report.with_suffix(".sqlite")
        done = _run(
            [str(self.binary), "export", "--type=sqlite", "--force-overwrite=true",
             f"--output={target}", str(report)], timeout,
        )  # fmt: skip
        if done.returncode or not target.is_file():
            raise DyCokeError(f"nsys cannot export {report}: {_last_line(done)}")
        return target


def find_nsys(path: Path | None = None) -> Nsys:
    """`path`, DYCOKE_NSYS or what is on PATH. Raises DyCokeError that says how to get it."""
    wanted = path or os.environ.get("DYCOKE_NSYS")
    program = shutil.which(wanted or "nsys")
    if program is None:
        where = f"{wanted}: no executable file" if wanted else "nsys is not on PATH"
        raise DyCokeError(f"{where}; {HOW_TO_GET}; or use --source torch")
    return Nsys(Path(program), _importer(Path(program).resolve()))


def _importer(binary: Path) -> Path | None:
    """Beside nsys's own folder, or where packages put it."""
    beside = sorted(binary.parent.parent.glob("host-linux-*/QdstrmImporter"))
    places = [*beside, *(p for place in _IMPORTERS for p in Path("/").glob(place[1:]))]
    return next((place for place in places if os.access(place, os.X_OK)), None)


def _run(
    command: Sequence[str], timeout: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DyCokeError(f"{command[0]}: not done after {timeout:.0f} s") from None
    except OSError as error:
        raise DyCokeError(f"{command[0]}: cannot be run ({error.strerror})") from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    # What nsys adds about its importer says nothing about the program.
    said = [line for line in lines if "mporter" not in line and "enerat" not in line]
    # An exception of nsys ends with what it is about: `[errno_text] = No such file or directory`.
    about = [line for line in said if line.startswith("[")]
    return " ".join((about or said or lines or [f"exit status {done.returncode}"])[-1].split())
