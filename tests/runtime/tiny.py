"""A small random Qwen2 for the native backend, and a client that keeps what comes back."""

from __future__ import annotations

import torch
from dycoke_trt.arch.qwen2 import Weights
from dycoke_trt.arch.spec import DecoderSpec
from dycoke_trt.runtime.native.weights import collect
from dycoke_trt.runtime.request import Event, Request
from dycoke_trt.runtime.runner import ModelRunner
from dycoke_trt.runtime.scheduler import Scheduler

VOCAB = 50
CONFIG = DecoderSpec(
    layers=4, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8, vocab=VOCAB,
    tied_embeddings=False, rope_theta=1e6, rms_norm_eps=1e-6, max_positions=512,
)  # fmt: skip


def random_weights(
    config: DecoderSpec = CONFIG,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Weights:
    generator = torch.Generator().manual_seed(seed)
    heads = (config.heads + 2 * config.kv_heads) * config.head_dim
    shapes = {
        "vocab_embedding.weight": (config.vocab, config.hidden),
        "lm_head.weight": (config.vocab, config.hidden),
        "ln_f.weight": (config.hidden,),
        "input_layernorm.weight": (config.hidden,),
        "post_layernorm.weight": (config.hidden,),
        "qkv.weight": (heads, config.hidden),
        "qkv.bias": (heads,),
        "dense.weight": (config.hidden, config.heads * config.head_dim),
        "fc.weight": (config.intermediate, config.hidden),
        "gate.weight": (config.intermediate, config.hidden),
        "proj.weight": (config.hidden, config.intermediate),
    }

    def get(name: str) -> torch.Tensor:
        shape = next(shape for suffix, shape in shapes.items() if name.endswith(suffix))
        noise = torch.randn(shape, generator=generator).to(device, dtype)
        if len(shape) == 1 and "bias" not in name:
            return 1 + 0.1 * noise
        return noise if "bias" in name or "embedding" in name else noise * 0.3

    return collect(config, get)


class Client:
    """Submits requests and keeps what comes back."""

    def __init__(self, engine: Scheduler) -> None:
        self.engine = engine
        self.events: dict[str, list[Event]] = {}

    def submit(self, name: str, prompt: list[int], max_tokens: int = 8, **options: object) -> None:
        self.events[name] = []
        self.engine.submit(
            Request(name, prompt, max_tokens, self.events[name].append, **options)  # type: ignore[arg-type]
        )

    def tokens(self, name: str) -> list[int]:
        return [token for event in self.events[name] for token in event.tokens]

    def finish(self, name: str) -> str | None:
        finishes = [event.finish for event in self.events[name] if event.finish is not None]
        assert len(finishes) <= 1
        assert not finishes or self.events[name][-1].finish is not None
        return finishes[0] if finishes else None


def model_runner(engine: Scheduler) -> ModelRunner:
    assert isinstance(engine.runner, ModelRunner)
    return engine.runner


def video_prompt(seed: int, visual: int = 24, text: int = 6) -> tuple[list[int], torch.Tensor]:
    """Token ids with a run of visual ones in the middle, and their embeddings."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(VOCAB, (text,), generator=generator).tolist()
    ids = words[: text // 2] + list(range(VOCAB, VOCAB + visual)) + words[text // 2 :]
    return ids, torch.randn(visual, CONFIG.hidden, generator=generator)
