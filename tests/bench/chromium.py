"""A page in headless Chromium, over the DevTools protocol: what it says, how wide it is, a picture.

    with chromium() as browser:
        seen = browser.open(path, width=390, dark=True)

Messages are JSON, each ended by a zero byte, through file descriptors 3 (in) and 4 (out).
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BINARY = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


@dataclass(frozen=True)
class Seen:
    """console: messages, exceptions and failed loads. width: of the content, in CSS pixels.
    background: of the page, as CSS. png: the whole page."""

    console: list[str]
    width: int
    background: str
    png: bytes


class Browser:
    """One tab."""

    def __init__(self, write: int, read: int) -> None:
        self._write = os.fdopen(write, "wb", buffering=0)
        self._read = os.fdopen(read, "rb")
        self._number = 0
        self._events: list[dict[str, Any]] = []
        self._session = ""

    def attach(self) -> None:
        """Opens the tab."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._tab(f"{domain}.enable")

    def open(self, path: Path, *, width: int, dark: bool) -> Seen:
        self._tab(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=844, deviceScaleFactor=1, mobile=width < 500,
        )  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._tab("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self._tab("Page.navigate", url=path.resolve().as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._next())
        found = self._evaluate("document.documentElement.scrollWidth")
        background = self._evaluate("getComputedStyle(document.body).backgroundColor")
        picture = self._tab("Page.captureScreenshot", captureBeyondViewport=True)
        said = [
            json.dumps(event["params"])
            for event in self._events
            if event["method"]
            in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        ]
        return Seen(said, found, background, base64.b64decode(picture["data"]))

    def close(self) -> None:
        self._write.close()
        self._read.close()

    def _evaluate(self, expression: str) -> Any:
        return self._tab("Runtime.evaluate", expression=expression)["result"]["value"]

    def _tab(self, method: str, **params: Any) -> Any:
        return self._call(method, session=self._session, **params)

    def _call(self, method: str, session: str = "", **params: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        self._write.write(json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == self._number:
                assert "error" not in reply, reply
                return reply["result"]
            if "method" in reply:
                self._events.append(reply)

    def _next(self) -> Any:
        raw = bytearray()
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser ended"
            raw += byte
        return json.loads(raw)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Its profile is a folder of its own, so it shares nothing with other instances."""
    assert BINARY is not None
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        command = [
            BINARY, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-dev-shm-usage",
            f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip

        # The browser looks at descriptors 3 and 4; the shell puts the pipes there (dash knows
        # descriptors of one digit only).
        shell = f'exec "$@" 3<&{to_read} 4>&{from_write}'
        process = subprocess.Popen(
            ["bash", "-c", shell, "bash", *command],
            pass_fds=(to_read, from_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        try:
            with closing(Browser(to_write, from_read)) as browser:
                browser.attach()
                yield browser
        finally:
            process.kill()
            process.wait()
