""".ci/system-packages with the real apt, on an archive of its own; installing is simulated.

Packages there depend on each other as Debian's do: nsys, of `non-free`, needs one of `contrib`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from hashlib import sha256
from itertools import starmap
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "system-packages"
PACKAGES = {
    "main": {"chromium": "", "openmpi-bin": "", "g++": "", "curl": ""},
    "contrib": {"nvidia-support": ""},
    "non-free": {"nsight-systems": "libcuda1", "libcuda1": "nvidia-support"},
}
STANZA = "# ours\n\nTypes: deb\nURIs: {}\nSuites: here here-updates\nComponents: {}\nTrusted: yes\n"
LINES = "# ours\ndeb [trusted=yes] {0} here {1}\ndeb [ trusted=yes ] {0} here-updates {1}\n"
LEFT = "Types: deb\nURIs: {}\nSuites: here\nComponents: non-free\nTrusted: yes\n"

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="apt is not installed")


class Apt:
    """An apt with its own folders, and its archive with `components`."""

    def __init__(self, folder: Path, components: tuple[str, ...]) -> None:
        self.root, archive = folder / "root", folder / "archive"
        self.uri = f"file:{archive}"
        for suite in ("here", "here-updates"):
            sums = ""
            for component in components:
                file = archive / "dists" / suite / component / "binary-amd64" / "Packages"
                file.parent.mkdir(parents=True)
                file.write_text("".join(starmap(_package, PACKAGES[component].items())))
                data = file.read_bytes()
                sums += (
                    f" {sha256(data).hexdigest()} {len(data)} {component}/binary-amd64/Packages\n"
                )
            (archive / "dists" / suite / "Release").write_text(
                f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\n"
                "Date: Thu, 01 Jan 2026 00:00:00 UTC\n"
                f"Architectures: amd64\nComponents: {' '.join(components)}\nSHA256:\n{sums}"
            )
        for name in ("etc/apt/sources.list.d", "etc/apt/apt.conf.d", "etc/apt/preferences.d",
                     "var/lib/apt/lists/partial", "var/lib/dpkg", "var/cache/apt/archives/partial",
                     "bin"):  # fmt: skip
            (self.root / name).mkdir(parents=True)
        (self.root / "var/lib/dpkg/status").touch()
        for name in ("apt-get", "apt-config"):
            (self.root / "bin" / name).symlink_to(shutil.which(name) or "")
        config = folder / "apt.conf"
        config.write_text(
            f'Dir "{self.root}"; Dir::State::status "{self.root}/var/lib/dpkg/status";\n'
            'APT::Architecture "amd64"; APT::Architectures { "amd64"; };\n'
            'Acquire::Languages "none"; APT::Sandbox::User "root"; APT::Get::Simulate "true";\n'
        )
        self.environment = {"APT_CONFIG": str(config), "PATH": str(self.root / "bin")}

    def add(self, name: str, text: str, components: str = "") -> None:
        path = self.root / "etc" / "apt" / name
        path.write_text(text.format(self.uri, components))

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=os.environ | self.environment, capture_output=True, text=True, check=False
        )


def _package(name: str, depends: str) -> str:
    needs = f"Depends: {depends}\n" if depends else ""
    return (
        f"Package: {name}\nVersion: 1\nArchitecture: amd64\nMaintainer: nobody\n{needs}"
        f"Filename: {name}.deb\nSize: 1\nSHA256: {64 * '0'}\nDescription: none\n\n"
    )


@pytest.mark.parametrize(
    ("files", "components"),
    [
        ({"sources.list.d/debian.sources": STANZA}, "main"),
        ({"sources.list.d/debian.sources": STANZA}, "main contrib"),
        ({"sources.list.d/debian.sources": STANZA}, "main non-free contrib"),
        ({"sources.list": LINES}, "main"),
        ({"sources.list": LINES}, "main non-free"),
        # of the script as it was
        (
            {
                "sources.list.d/debian.sources": STANZA,
                "sources.list.d/dycoke-non-free.sources": LEFT,
            },
            "main",
        ),
    ],
)
def test_each_component_is_there_once(
    tmp_path: Path, files: dict[str, str], components: str
) -> None:
    apt = Apt(tmp_path, ("main", "contrib", "non-free"))
    for name, text in files.items():
        apt.add(name, text, components)
    for _ in range(2):  # again: nothing is added twice
        done = apt.run(sys.executable, str(SCRIPT))
        # simulated: nothing was installed, and no package was refused
        left = "nsys, chromium, mpirun, g++, curl"
        assert (done.returncode, done.stderr) == (1, f"not installed: {left}\n")
        listed = apt.run("apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT)",
                         "Created-By: Packages").stdout  # fmt: skip
        assert sorted(listed.split("\n")[:-1]) == sorted(
            f"{suite} {component}" for suite in ("here", "here-updates") for component in PACKAGES
        )
        assert apt.run("apt-get", "-qq", "update").stderr == ""  # no source is configured twice
    given = [apt.root / "etc" / "apt" / name for name in files]
    ours = set((apt.root / "etc/apt/sources.list.d").iterdir()) - set(given)
    assert bool(ours) == (components != "main non-free contrib" and len(files) == 1)


def test_a_package_that_cannot_be_installed_is_told_with_the_reason_of_apt(tmp_path: Path) -> None:
    apt = Apt(tmp_path, ("main", "non-free"))  # a mirror without contrib
    apt.add("sources.list.d/debian.sources", STANZA, "main")
    done = apt.run(sys.executable, str(SCRIPT))
    assert done.returncode == 1
    assert "libcuda1 : Depends: nvidia-support but it is not installable" in done.stderr
    assert "contrib" in done.stderr  # the warning of the update
    assert done.stderr.endswith("not installed: nsys, chromium, mpirun, g++, curl\n")


def test_sources_with_which_the_update_fails_are_removed(tmp_path: Path) -> None:
    apt = Apt(tmp_path, ("main", "contrib", "non-free"))
    apt.add("sources.list.d/debian.sources", STANZA, "main")
    refusing = apt.root / "bin" / "apt-get"
    real = refusing.resolve()
    refusing.unlink()
    refusing.write_text(
        f'#!/bin/sh\n[ ! -e "{apt.root}/etc/apt/sources.list.d/dycoke-non-free.sources" ] ||\n'
        f'    {{ echo "E: no"; exit 100; }}\nexec {real} "$@"\n'
    )
    refusing.chmod(0o755)
    done = apt.run(sys.executable, str(SCRIPT))
    assert "    E: no\n" in done.stderr
    assert "Unable to locate package nsight-systems" in done.stderr
    assert [p.name for p in (apt.root / "etc/apt/sources.list.d").iterdir()] == ["debian.sources"]


def test_without_apt(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env={"PATH": str(tmp_path)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    wanted = "nsight-systems, chromium, openmpi-bin, g++, curl"
    assert (done.returncode, done.stderr) == (1, f"not a Debian system; please install {wanted}\n")
