"""The fifteen tests, by number."""

from __future__ import annotations

from . import (
    cancelling,
    compatibility,
    exhaustion,
    fuzz,
    growth,
    identity,
    isolation,
    kills,
    overload,
    oversize,
    reload,
    reuse,
    shared_memory,
    slow_consumer,
    vanishing,
)
from .outcome import Test

TESTS = (
    Test(1, "bad input", fuzz.CRITERION, fuzz.run),
    Test(2, "cancel at every stage", cancelling.CRITERION, cancelling.run),
    Test(3, "clients that vanish", vanishing.CRITERION, vanishing.run),
    Test(4, "overload", overload.CRITERION, overload.run, bundle=True),
    Test(5, "KV exhaustion", exhaustion.CRITERION, exhaustion.run),
    Test(6, "larger than the build", oversize.CRITERION, oversize.run),
    Test(7, "memory growth", growth.CRITERION, growth.run, bundle=True),
    Test(8, "model reload", reload.CRITERION, reload.run, bundle=True),
    Test(9, "compatibility", compatibility.CRITERION, compatibility.run, bundle=True),
    Test(10, "isolation of state", isolation.CRITERION, isolation.run),
    Test(11, "nothing to prune", identity.CRITERION, identity.run),
    Test(12, "slow consumer", slow_consumer.CRITERION, slow_consumer.run),
    Test(13, "killed and stopped processes", kills.CRITERION, kills.run, bundle=True),
    Test(14, "reuse of media", reuse.CRITERION, reuse.run),
    Test(15, "shared memory", shared_memory.CRITERION, shared_memory.run, bundle=True),
)
