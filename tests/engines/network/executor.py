"""A small executor: what TensorRT-LLM's runtime does around an engine, for greedy requests.

It gives out blocks of the KV pool, packs prompts (in chunks) before decoding rows, and fills the
inputs that are the same on every rank. Followed: batch_manager/runtimeBuffers.cpp and
transformerBuffers.cpp of the 1.2 era. host_kv_cache_pool_mapping is [layers, 2], as there (0.17
declares [layers]).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from dycoke_trt.core.pool import PoolLayout, encode_table
from dycoke_trt.tests.engines.network.attention import CONTEXT, GENERATION
from torch import Tensor

Engine = Callable[[dict[str, Tensor]], Tensor]  # inputs -> logits [rows, vocab]


@dataclass
class Running:
    """One request. task: its rows of the embedding table."""

    prompt: list[int]
    embeddings: Tensor
    new_tokens: int
    blocks: list[int]
    task: int
    prefilled: int = 0
    tokens: list[int] = field(default_factory=list)

    @property
    def decoding(self) -> bool:
        return self.prefilled == len(self.prompt)


class Executor:
    """layout: of the pool. most_blocks: width of the tables. Blocks are given out in any order."""

    def __init__(self, layout: PoolLayout, most_blocks: int, seed: int) -> None:
        self.layout, self.most_blocks = layout, most_blocks
        generator = torch.Generator().manual_seed(seed)
        self._free = torch.randperm(layout.num_blocks, generator=generator).tolist()
        self.running: list[Running] = []

    def fits(self, tokens: int) -> bool:
        return -(-tokens // self.layout.tokens_per_block) <= len(self._free)

    def submit(self, prompt: list[int], embeddings: Tensor, new_tokens: int) -> Running:
        count = -(-(len(prompt) + new_tokens) // self.layout.tokens_per_block)
        blocks = [self._free.pop() for _ in range(count)]
        taken = {request.task for request in self.running}
        task = next(t for t in range(len(taken) + 1) if t not in taken)
        self.running.append(Running(prompt, embeddings, new_tokens, blocks, task))
        return self.running[-1]

    def step(self, engine: Engine, chunk: int) -> tuple[int, int]:
        """The next `chunk` prompt tokens of each request, and a token of each that decodes.

        Blocks of an answer that is complete are free for the next request, as they are. Returns how
        many prompts and how many decoding rows there were.
        """
        prompts = [r for r in self.running if not r.decoding]
        decodes = [r for r in self.running if r.decoding]
        inputs, counts = self._inputs(prompts, decodes, chunk)
        logits = engine(inputs)
        assert len(logits) == len(prompts) + len(decodes)
        for request, count in zip(prompts, counts, strict=False):
            request.prefilled += count
        for row, request in enumerate([*prompts, *decodes]):
            if request.decoding:
                request.tokens.append(int(logits[row].argmax()))
            if len(request.tokens) == request.new_tokens:
                self.running.remove(request)
                self._free += request.blocks
        return len(prompts), len(decodes)

    def _inputs(
        self, prompts: Sequence[Running], decodes: Sequence[Running], chunk: int
    ) -> tuple[dict[str, Tensor], list[int]]:
        fed, lengths, contexts = [], [], []
        for r in prompts:
            part = r.prompt[r.prefilled : r.prefilled + chunk]
            fed.append(part)
            lengths.append(r.prefilled + len(part))
            contexts.append(len(part))
        for r in decodes:
            fed.append(r.tokens[-1:])
            lengths.append(len(r.prompt) + len(r.tokens))
            contexts.append(len(r.prompt))  # the whole prompt, whatever the chunks were
        rows = [*prompts, *decodes]
        counts = [len(part) for part in fed]
        starts = [length - count for length, count in zip(lengths, counts, strict=True)]
        padded = [r.blocks + [0] * (self.most_blocks - len(r.blocks)) for r in rows]
        layers, window = self.layout.layers, self.most_blocks * self.layout.tokens_per_block
        table = encode_table(torch.tensor(padded), layers)[None].contiguous()
        prompt_rows = max(1, *(len(r.embeddings) for r in rows))
        tasks, hidden = max(r.task for r in rows) + 1, rows[0].embeddings.shape[1]
        embeddings = torch.zeros(tasks, prompt_rows, hidden)
        for r in rows:
            embeddings[r.task, : len(r.embeddings)] = r.embeddings

        def ints(values: Sequence[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32)

        return {
            "input_ids": ints([token for part in fed for token in part]),
            "position_ids": ints(
                [s + i for s, n in zip(starts, counts, strict=True) for i in range(n)]
            ),
            "last_token_ids": torch.cumsum(ints(counts), 0).int(),
            "prompt_embedding_table": embeddings.flatten(0, 1),
            "tasks": ints([r.task for r, n in zip(rows, counts, strict=True) for _ in range(n)]),
            "prompt_vocab_size": ints([prompt_rows]),
            "sequence_length": ints(lengths),
            "context_lengths": ints(contexts),
            "host_context_lengths": ints(contexts),
            "host_request_types": ints([CONTEXT] * len(prompts) + [GENERATION] * len(decodes)),
            "host_past_key_value_lengths": ints(starts),
            "host_max_attention_window_sizes": ints([window] * layers),
            "host_sink_token_length": ints([0]),
            "kv_cache_block_offsets": table,
            "host_kv_cache_block_offsets": table.clone(),
            "host_kv_cache_pool_mapping": ints([(0, layer) for layer in range(layers)]),
            "cache_indirection": torch.zeros(len(rows), 1, window, dtype=torch.int32),
            "host_runtime_perf_knobs": torch.zeros(16, dtype=torch.int64),
            "host_context_progress": torch.zeros(1, dtype=torch.int64),
        }, counts  # fmt: skip
