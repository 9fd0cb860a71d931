"""Options that would have no effect are refused, in one line, before anything is done."""

from __future__ import annotations

import pytest
from dycoke_trt.tests.support import assert_one_line, dycoke

BENCH = ("bench", "Why?", "--server", "localhost:1", "--video", "no.mp4", "-o", "out")
PROFILE = ("profile", "Why?", "--video", "no.mp4", "-o", "out", "--offline", "bundle")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("build", "b", "--target", "h100", "--tp", "2"), "--tp and --max-frames are for --model"),
        (("build", "b", "--target", "h100", "--json"), "--json has no effect without --dry-run"),
        (
            ("build", "b", "--target", "cpu", "--kv-fraction", "0.5"),
            "has no effect with --target cpu, which compiles nothing; use --kv-tokens",
        ),
        (
            ("build", "--model", "llava-ov-7b", "--target", "h100", "--dry-run", "--tp", "0"),
            "--tp 0 is impossible",
        ),
        (
            ("export", "m", "-o", "b", "--granularity", "token", "--block-reduce", "max"),
            "--block-reduce max has no effect with --granularity token",
        ),
        (("verify", "b", "--vision-tower", "t"), "--vision-tower t has no effect without --source"),
        (("ask", "b", "Why?", "--frames", "8"), "--frames 8 has no effect without --video"),
        ((*BENCH, "--rate", "2", "--concurrency", "4"), "give one of them"),
        ((*BENCH, "--seed", "1"), "--seed has no effect without --rate"),
        ((*PROFILE, "--source", "torch", "--nsys", "nsys"), "has no effect with --source torch"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_options_without_an_effect(command: tuple[str, ...], message: str) -> None:
    assert_one_line(dycoke(*command), message)
