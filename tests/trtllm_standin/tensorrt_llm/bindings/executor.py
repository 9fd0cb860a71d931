"""A stand-in for TensorRT-LLM's compiled executor bindings, for machines without a GPU.

It replaces what is compiled, and nothing else: an `Executor` of the same methods, whose engine is
the native backend on the bundle that the engine directory lies in. It batches in a thread of its
own, feeds prompts in chunks of max_num_tokens, and answers as the executor does: an end token is
not part of the output, a stop word is; numbers instead of names; errors as responses. Under mpirun
the first rank takes requests, and the others work until it ends (they compute nothing here). It
counts decisions in the file that the plugins would write. A request with the seed FAILING gets an
error, one with the seed FATAL breaks the executor.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.core.decisions import Decision
from dycoke_trt.runtime import request as native
from dycoke_trt.runtime.native.load import load_engine
from dycoke_trt.runtime.sampling import Sampling
from dycoke_trt.runtime.scheduler import EngineLimits
from dycoke_trt.runtime.trtllm.counters import MOVES, counters_path
from dycoke_trt.tests.trtllm_standin.values import (
    BatchingType,
    Bound,
    CapacitySchedulerPolicy,
    ExecutorConfig,
    FinishReason,
    IterationStats,
    KvCacheConfig,
    KvCacheStats,
    ModelType,
    OutputConfig,
    PromptTuningConfig,
    Request,
    Response,
    Result,
    SamplingConfig,
    SchedulerConfig,
)

__all__ = [
    "BatchingType", "CapacitySchedulerPolicy", "Executor", "ExecutorConfig", "FinishReason",
    "KvCacheConfig", "ModelType", "OutputConfig", "PromptTuningConfig", "Request", "Response",
    "Result", "SamplingConfig", "SchedulerConfig",
]  # fmt: skip
FAILING, FATAL = 13, 14
_REASONS = {
    "end": FinishReason.END_ID, "length": FinishReason.LENGTH, "cancelled": FinishReason.CANCELLED,
}  # fmt: skip
_published: dict[int, list[int]] = {}  # decisions and moves of every executor of the process
_COUNTED = {decision.row: decision for decision in Decision}


class Executor:
    def __init__(
        self, model_path: Path | str, model_type: ModelType, executor_config: ExecutorConfig
    ) -> None:
        if not isinstance(executor_config, ExecutorConfig) or model_type != ModelType.DECODER_ONLY:
            raise TypeError("incompatible function arguments")
        _only(executor_config, "scheduler_config", "kv_cache_config", "enable_chunked_context",
              "max_batch_size", "max_num_tokens")  # fmt: skip
        _only(executor_config.scheduler_config)
        _only(executor_config.kv_cache_config, "enable_block_reuse", "max_tokens",
              "free_gpu_memory_fraction")  # fmt: skip
        assert not executor_config.kv_cache_config.enable_block_reuse
        assert executor_config.enable_chunked_context
        config = json.loads((Path(model_path) / "config.json").read_text())
        self._block = config["build_config"]["plugin_config"]["tokens_per_block"]
        bundle = Path(model_path).parents[2]
        manifest = open_bundle(bundle)
        self._dtype, self._vocab = manifest.llm.dtype, manifest.visual_token_base
        tokens, batch = executor_config.kv_cache_config.max_tokens, executor_config.max_batch_size
        chunk = executor_config.max_num_tokens
        assert tokens is not None
        assert batch is not None
        assert chunk is not None
        self._engine = load_engine(
            bundle, manifest.config, kv_tokens=tokens, tokens_per_block=self._block,
            limits=EngineLimits(max_batch=batch, max_queue=100_000, prefill_chunk=chunk),
        )  # fmt: skip
        self._leading = Path(model_path) / ".leading"  # exists while the first rank works
        self._leads = os.environ.get("OMPI_COMM_WORLD_RANK", "0") == "0"
        if self._leads:
            self._leading.touch()
        self._numbers = count(1)
        self._ready = threading.Condition()
        self._responses: list[Response] = []
        self._broken = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="executor", daemon=True)
        self._thread.start()

    def can_enqueue_requests(self) -> bool:
        return self._leads

    def enqueue_request(self, request: Request) -> int:
        if not isinstance(request, Request):
            raise TypeError("incompatible function arguments")
        _only(request, "input_token_ids", "max_tokens", "streaming", "sampling_config",
              "output_config", "end_id", "stop_words", "prompt_tuning_config")  # fmt: skip
        _only(request.output_config, "exclude_input_from_output")
        _only(request.sampling_config, "top_k", "top_p", "temperature", "seed")
        assert request.streaming
        assert request.output_config.exclude_input_from_output
        number = next(self._numbers)
        seed = request.sampling_config.seed
        if seed in (FAILING, FATAL):
            self._broken |= seed == FATAL
            self._answer(Response(number, "the engine could not run it"))
            return number
        self._engine.submit(self._native(number, request))
        return number

    def cancel_request(self, id: int) -> None:  # noqa: A002 (the binding's name)
        self._engine.cancel(str(id))

    def await_responses(self, timeout: timedelta | None = None) -> list[Response]:
        assert timeout is None or isinstance(timeout, timedelta)
        seconds = None if timeout is None else timeout.total_seconds()
        with self._ready:
            self._ready.wait_for(lambda: bool(self._responses), seconds)
            if self._broken:
                raise RuntimeError("the executor's thread ended")
            found, self._responses = self._responses, []
            return found

    def get_latest_iteration_stats(self) -> list[IterationStats]:
        blocks, waiting = self._engine.blocks, self._engine.waiting()
        used = blocks.num_blocks - blocks.free
        pool = KvCacheStats(blocks.num_blocks, blocks.free, used, self._block)
        return [IterationStats(self._engine.in_flight() - waiting, waiting, pool)]

    def shutdown(self) -> None:
        if self._leads:
            self._leading.unlink(missing_ok=True)
        else:
            while self._leading.exists():
                self._stopping.wait(0.05)
        self._stopping.set()
        self._thread.join()

    def _native(self, number: int, request: Request) -> native.Request:
        given, table = request.sampling_config, request.prompt_tuning_config
        embeddings = None if table is None else table.embedding_table
        if embeddings is not None and (str(embeddings.dtype) != f"torch.{self._dtype}"):
            raise RuntimeError(f"the engine's prompt_embedding_table is {self._dtype}")
        if not (given.top_k or given.top_p):
            raise RuntimeError("neither top_k nor top_p: the executor would be greedy")
        greedy = Sampling() if given.top_k == 1 else None
        return native.Request(
            str(number), list(request.input_token_ids), request.max_tokens,
            self._answering(number, request.stop_words or []), embeddings,
            greedy or Sampling(given.temperature or 1.0, given.top_k or 0, given.top_p or 1.0,
                               given.seed or 0),
            frozenset() if request.end_id is None else frozenset([request.end_id]),
        )  # fmt: skip

    def _answering(self, number: int, stop: list[list[int]]) -> Callable[[native.Event], None]:
        tokens: list[int] = []
        ended = False

        def on_event(event: native.Event) -> None:
            nonlocal ended
            if ended:
                return
            tokens.extend(event.tokens)
            reason = FinishReason.NOT_FINISHED
            if any(tokens[-len(word) :] == word for word in stop):
                reason = FinishReason.STOP_WORDS
                self._engine.cancel(event.request_id)
            elif event.finish is not None:
                reason = _REASONS[event.finish]
            ended = reason != FinishReason.NOT_FINISHED
            self._answer(Response(number, Result(ended, [event.tokens], [reason])))

        return on_event

    def _answer(self, response: Response) -> None:
        with self._ready:
            self._responses.append(response)
            self._ready.notify_all()

    def _run(self) -> None:
        while not self._stopping.is_set():
            if self._engine.wait_for_work(0.05):
                self._engine.step()
                self._count()

    def _count(self) -> None:
        if name := os.environ.get("DYCOKE_COUNTERS_FILE"):
            path = counters_path(name, os.getpid())
            selection = self._engine.selection
            _published[id(self)] = [*selection.decisions, selection.reorders, selection.moved]
            total = [sum(counts) for counts in zip(*_published.values(), strict=True)]
            rows = {name: total[decision] for name, decision in _COUNTED.items()}
            draft = path.with_name(f"{path.name}.new")
            moves = dict(zip(MOVES, total[-2:], strict=True))
            draft.write_text(json.dumps({"rows": rows, **moves}))
            draft.replace(path)


def _only(values: Bound, *played: str) -> None:
    """Refuses options that this stand-in would ignore."""
    required = {"input_token_ids": [], "max_tokens": 1} if isinstance(values, Request) else {}
    default: Any = type(values)(**required)
    same = {one.name: getattr(default, one.name) for one in fields(values)}  # type: ignore[arg-type]
    rest = replace(default, **{name: getattr(values, name) for name in same if name not in played})
    if rest != default:
        raise NotImplementedError(f"the stand-in plays no {values}")
