"""The device backend against the CPU backend: same tokens, same decisions, same selections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from dycoke_trt.arch.siglip import VisionModel, fused_attention
from dycoke_trt.arch.spec import PixelScale, TowerSpec, VisionSpec
from dycoke_trt.compress.newlines import Newline
from dycoke_trt.compress.ttm import Ttm
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.decisions import Decision
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.demo import MODEL_DIR
from dycoke_trt.export.checkpoint import open_checkpoint
from dycoke_trt.export.llm import export_llm
from dycoke_trt.runtime.native.cpu import cpu_runner
from dycoke_trt.runtime.native.cuda import cuda_runner
from dycoke_trt.runtime.native.graphs import GraphDecoder
from dycoke_trt.runtime.native.weights import load_weights
from dycoke_trt.runtime.sampling import Sampling
from dycoke_trt.runtime.scheduler import EngineLimits, Scheduler
from dycoke_trt.runtime.selection import StepTrace
from dycoke_trt.runtime.steps import Chunk, Lane
from dycoke_trt.runtime.vision_torch import TorchVision
from dycoke_trt.tests.interpreter import INTERPRETED
from dycoke_trt.tests.kernels.device.batches import DEVICE, DTYPES, TOLERANCE
from dycoke_trt.tests.runtime.tiny import CONFIG, Client, model_runner, random_weights, video_prompt

CONFIGS = {
    "off": DyCokeConfig.off(),
    "reuse": DyCokeConfig(l=2, p=0.5),
    "max, l=0": DyCokeConfig(l=0, p=0.7, block_reduce="max", gate_threshold=0.99),
    "full": DyCokeConfig(l=1, p=0.5, gate="full", gate_threshold=0.5),
    "tokens": DyCokeConfig(l=2, p=0.5, granularity="token", memory=0.6),
    "importance": DyCokeConfig(l=2, p=0.5, gate="always", memory=0.65, order="importance"),
}
Traces = list[tuple[str, StepTrace]]


def tiny_engine(device: str, config: DyCokeConfig, traces: Traces, chunk: int) -> Scheduler:
    weights = random_weights(device="cpu" if device == "host" else DEVICE)
    if device == "host":
        runner = cpu_runner(CONFIG, weights, 64, 4, config)
    else:
        runner = cuda_runner(CONFIG, weights, 64, 4, config, max_batch=2)
    limits = EngineLimits(max_batch=2, prefill_chunk=chunk)
    return Scheduler(runner, limits, lambda name, step: traces.append((name, step)))


@pytest.mark.parametrize(("name", "chunk"), [*zip(CONFIGS, (2048, 7, 2048, 9, 7, 11), strict=True)])
def test_device_equals_cpu(name: str, chunk: int) -> None:
    """Three requests on two lanes: ragged, batches that change, blocks that are recycled."""
    answers, traces, counts = [], [], []
    for device in ("host", "device"):
        steps: Traces = []
        client = Client(tiny_engine(device, CONFIGS[name], steps, chunk))
        for seed, tokens in enumerate((4, 2, 4)):
            ids, embeddings = video_prompt(seed, visual=14 + seed, text=4 + seed)
            options = {"sampling": Sampling(top_k=0, seed=seed)} if seed == 1 else {}
            client.submit(f"r{seed}", ids, tokens, embeddings=embeddings, **options)
        client.engine.run_until_idle()
        answers.append([client.tokens(request) for request in client.events])
        traces.append(steps)
        counts.append(replace(client.engine.selection, seconds=0.0))
    assert answers[0] == answers[1]
    assert counts[0] == counts[1]
    assert (counts[0].context > 0) == (name != "off")
    assert (counts[0].moved > 0) == (name == "importance")
    assert len(traces[0]) == len(traces[1]) == (0 if name == "off" else 7)
    for (request, theirs), (other, mine) in zip(*traces, strict=True):
        assert request == other
        assert mine.decision == theirs.decision
        assert mine.kept.tolist() == theirs.kept.tolist()
        assert (mine.order is None) == (theirs.order is None) == (name != "importance")
        if mine.order is not None and theirs.order is not None:
            assert torch.equal(mine.order, theirs.order)
        assert mine.similarity == pytest.approx(theirs.similarity, abs=1e-4)
        torch.testing.assert_close(mine.scores, theirs.scores, atol=1e-5, rtol=1e-3)


@pytest.fixture(scope="module")
def demo_llm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("demo") / "llm"
    export_llm(open_checkpoint(MODEL_DIR), folder, DyCokeConfig(), Dtype.FP32, 1)
    return folder


def test_demo_model_answers_alike(demo_llm: Path) -> None:
    """fp32 greedy tokens of the trained model; the video is noise of its embeddings' size."""
    answers, decisions = [], []
    for make, device in ((cpu_runner, "cpu"), (cuda_runner, DEVICE)):
        config, weights = load_weights(demo_llm, device=device)
        steps: Traces = []
        runner = make(config, weights, 24, 8, DyCokeConfig())
        engine = Scheduler(runner, trace=lambda n, s, to=steps: to.append((n, s)))
        client = Client(engine)
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(70, config.hidden, generator=generator) * 0.06
        ids = [5, 6, 7, *range(config.vocab, config.vocab + 70), 11, 12]
        client.submit("r", ids, 4 if INTERPRETED else 48, embeddings=noise)
        client.engine.run_until_idle()
        answers.append(client.tokens("r"))
        decisions.append([(s.decision, s.kept.tolist()) for _, s in steps])
    assert answers[0] == answers[1]
    assert decisions[0] == decisions[1]
    assert any(decision == Decision.REUSE for decision, _ in decisions[0])
    assert all(len(kept) < 70 for _, kept in decisions[0])


@pytest.mark.skipif(INTERPRETED, reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("name", CONFIGS)
def test_graph_replay_equals_eager_launches(name: str) -> None:
    logits = []
    for graphs in (True, False):
        engine = tiny_engine("device", CONFIGS[name], [], 2048)
        decoder = model_runner(engine).decoder
        assert isinstance(decoder, GraphDecoder)
        decoder.graphs = graphs
        client = Client(engine)
        for seed in range(2):
            ids, embeddings = video_prompt(seed, visual=36 + seed, text=4 + seed)
            client.submit(f"r{seed}", ids, 6, embeddings=embeddings)
        client.engine.run_until_idle()
        (bucket,) = [b for b in decoder._buckets.values() if b.size == 2]
        assert (bucket.graph is not None) == graphs
        logits.append((bucket.logits.clone(), [client.tokens(f"r{i}") for i in range(2)]))
    assert logits[0][1] == logits[1][1]
    assert torch.equal(logits[0][0], logits[1][0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_prompt_in_chunks_is_the_prompt(dtype: torch.dtype) -> None:
    """Head size 64, which torch's fused attention takes: its lower-right mask, and keys from the
    pool, against one causal pass. On a GPU in bf16 too."""
    config = replace(CONFIG, head_dim=64, layers=2)
    weights = random_weights(config, device=DEVICE, dtype=dtype)
    ids = (torch.arange(21) % config.vocab).tolist()
    last = []
    for chunks in ((21,), (6, 1, 14)):
        runner, past = cuda_runner(config, weights, 6, 8, DyCokeConfig.off()), 0
        for count in chunks:
            upto = past + count
            chunk = Chunk(ids[past:upto], past, [3, 0, 5, 1], None, last=upto == len(ids))
            logits, past = runner.prefill(chunk), upto
        assert logits is not None
        last.append(logits.logits)
    scale = float(last[0].abs().max())
    tolerance = 1e-4 if dtype == torch.float32 else 4 * TOLERANCE[dtype]
    torch.testing.assert_close(last[1], last[0], atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("name", ["reuse", "tokens"])
def test_unused_lanes_change_nothing(name: str) -> None:
    """The step that a graph is recorded with: pool, state and counters stay as they were."""
    engine = tiny_engine("device", CONFIGS[name], [], 2048)
    decoder = model_runner(engine).decoder
    assert isinstance(decoder, GraphDecoder)
    assert decoder.state is not None
    pool = model_runner(engine).cache.pool
    pool.fill_(1.0)
    before = [
        pool.clone(),
        decoder.state.scores.clone(),
        decoder.state.average.clone(),
        decoder.state.keep.clone(),
        decoder.counters.clone(),
    ]
    decoder.graphs = False
    decoder.step([Lane(0, 0, 0, [0])] * 2)
    state = decoder.state
    after = [pool, state.scores, state.average, state.keep, decoder.counters]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("newline", ["one_token", "grid"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vision_merges_with_the_kernels(dtype: torch.dtype, newline: Newline) -> None:
    """TTM by kernels/ttm.py inside the vision step keeps the tokens that compress/ttm.py keeps."""
    tower = TowerSpec(1, 32, 48, 8, 6, heads=2, image_size=48, layer_norm_eps=1e-6, tanh_gelu=True)
    spec = VisionSpec(tower, 64, PixelScale(), Ttm(9, 0.7), newline)
    module = VisionModel(spec, dtype, attention=fused_attention)
    weights = {
        name: torch.randn(parameter.shape, dtype=dtype, device=DEVICE) * 0.2
        for name, parameter in module.named_parameters()
    }
    module.load_state_dict(weights, assign=True)
    frames = torch.randint(0, 256, (2, 8, 3, 48, 48), dtype=torch.uint8)
    expected, got = (
        TorchVision(module.to(DEVICE), kernels=kernels)(frames) for kernels in (False, True)
    )
    assert torch.equal(got, expected)


def test_buckets_are_powers_of_two_up_to_the_batch() -> None:
    decoder = model_runner(tiny_engine("device", CONFIGS["reuse"], [], 2048)).decoder
    assert isinstance(decoder, GraphDecoder)
    decoder.graphs, decoder.max_batch = False, 6
    decoder.prepare(6, 9)
    assert sorted(decoder._buckets) == [(1, 16), (2, 16), (4, 16), (6, 16)]
