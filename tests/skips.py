"""Which skips CI allows: reasons in skips.toml. For any other reason the run fails.

A skip hides what a machine lacks: without this, one that lost nsys would stay green. Every run
prints its skips by reason, once each.
"""

from __future__ import annotations

import os
import tomllib
from collections import Counter
from pathlib import Path

import pytest
from _pytest.terminal import TerminalReporter

LIST = Path(__file__).with_name("skips.toml")


def _skips(reporter: TerminalReporter) -> list[tuple[str, str]]:
    """(test, reason) of each; with pytest-xdist, of all its processes."""
    skips = []
    for report in reporter.stats.get("skipped", []):
        _, _, reason = report.longrepr
        skips.append((report.nodeid, reason.removeprefix("Skipped: ")))
    return skips


def _forbidden(reporter: TerminalReporter) -> list[tuple[str, str]]:
    if not os.environ.get("CI"):
        return []
    allowed = tomllib.loads(LIST.read_text())
    return [(test, reason) for test, reason in _skips(reporter) if reason not in allowed]


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None and _forbidden(reporter) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    counts = Counter(reason for _, reason in _skips(terminalreporter))
    if counts:
        terminalreporter.section("skipped, by reason")
    for reason, count in counts.most_common():
        terminalreporter.line(f"{count:4} {reason}")
    forbidden = _forbidden(terminalreporter)
    if forbidden:
        terminalreporter.section(f"FAILED: skipped in CI for a reason not in {LIST.name}", red=True)
    for test, reason in forbidden:
        terminalreporter.line(f"{test}: {reason}")
