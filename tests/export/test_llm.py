import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from dycoke_trt.bundle.files import sha256
from dycoke_trt.bundle.llm_layout import allowed_tp, check_tp, padded_vocab, rank_shapes
from dycoke_trt.bundle.llm_reader import LlmCheckpoint, read_llm
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.cost.dims import PRESETS, LlmDims
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.export.checkpoint import Checkpoint, open_checkpoint
from dycoke_trt.export.llm import export_llm
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

CONFIG = DyCokeConfig(l=1)
VOCAB = 103


@pytest.fixture(scope="module")
def export(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function (tp, dtype) -> exported and reopened checkpoint."""

    def make(tp: int, dtype: Dtype = Dtype.FP32) -> LlmCheckpoint:
        directory = tmp_path_factory.mktemp("llm") / "llm"
        hashes = export_llm(checkpoint, directory, CONFIG, dtype, tp)
        assert {p.name for p in directory.iterdir()} == {"config.json", *hashes}
        assert all(sha256(directory / name) == digest for name, digest in hashes.items())
        return read_llm(directory)

    return make


def test_names_and_layout(export: Any, hf_model: Any) -> None:
    found = export(1)
    state = hf_model.model.language_model.state_dict()
    assert torch.equal(found.tensor("lm_head.weight"), hf_model.lm_head.weight)
    assert torch.equal(
        found.tensor("transformer.vocab_embedding.weight"), state["embed_tokens.weight"]
    )
    assert torch.equal(found.tensor("transformer.ln_f.weight"), state["norm.weight"])
    for i in range(2):
        ours, theirs = f"transformer.layers.{i}.", f"layers.{i}."
        for kind in ("weight", "bias"):
            qkv = [state[f"{theirs}self_attn.{x}_proj.{kind}"] for x in "qkv"]
            assert torch.equal(found.tensor(f"{ours}attention.qkv.{kind}"), torch.cat(qkv))
        for name, source in (
            ("input_layernorm", "input_layernorm"),
            ("post_layernorm", "post_attention_layernorm"),
            ("attention.dense", "self_attn.o_proj"),
            ("mlp.fc", "mlp.gate_proj"),
            ("mlp.gate", "mlp.up_proj"),
            ("mlp.proj", "mlp.down_proj"),
        ):
            tensor = found.tensor(f"{ours}{name}.weight")
            assert torch.equal(tensor, state[f"{theirs}{source}.weight"]), name


@pytest.mark.parametrize("tp", [2, 4])
def test_shards_join_to_the_whole(export: Any, tp: int) -> None:
    whole, parts = export(1), export(tp)
    assert whole.names() == parts.names()
    q, kv = 64, 32  # rows of q, of k and of v
    for name in whole.names():
        pieces = [parts.tensor(name, rank) for rank in range(tp)]
        if ".attention.qkv." in name:
            split = [piece.split([q // tp, kv // tp, kv // tp]) for piece in pieces]
            joined = torch.cat([torch.cat(rows) for rows in zip(*split, strict=True)])
        elif name.endswith(("dense.weight", "proj.weight")):
            joined = torch.cat(pieces, dim=1)
        elif name.endswith(("fc.weight", "gate.weight")):
            joined = torch.cat(pieces)
        elif name == "lm_head.weight":
            joined = torch.cat(pieces)
            assert len(joined) == padded_vocab(VOCAB, tp) == 104
            assert not joined[VOCAB:].any()
            joined = joined[:VOCAB]
        else:
            assert all(torch.equal(piece, pieces[0]) for piece in pieces)
            joined = pieces[0]
        assert torch.equal(joined, whole.tensor(name)), name


def logits(found: LlmCheckpoint, ids: torch.Tensor) -> torch.Tensor:
    """fp32 [T, vocab] of a plain Qwen2 forward pass, the ranks side by side and summed."""
    dims, ranks, length = found.llm, range(found.tp), len(ids)
    heads, kv, d = dims.heads // found.tp, max(1, dims.kv_heads // found.tp), dims.head_dim
    angles = torch.arange(length)[:, None] / found.llm.rope_theta ** (torch.arange(0, d, 2) / d)
    cos, sin = (torch.cat([f(angles)] * 2, dim=-1) for f in (torch.cos, torch.sin))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + found.llm.rms_norm_eps)
        return x * scale * found.tensor(f"transformer.{name}.weight")

    def rotate(x: torch.Tensor) -> torch.Tensor:
        low, high = x.chunk(2, dim=-1)
        return x * cos + torch.cat([-high, low], dim=-1) * sin

    def attention(x: torch.Tensor, layer: str, rank: int) -> torch.Tensor:
        weight, bias = (found.tensor(f"{layer}.qkv.{kind}", rank) for kind in ("weight", "bias"))
        qkv = (x @ weight.T + bias).view(length, heads + 2 * kv, d).transpose(0, 1)
        q, k, v = qkv.split([heads, kv, kv])
        mixed = torch.nn.functional.scaled_dot_product_attention(
            rotate(q), rotate(k), v, is_causal=True, enable_gqa=True
        )
        return mixed.transpose(0, 1).flatten(1) @ found.tensor(f"{layer}.dense.weight", rank).T

    def mlp(x: torch.Tensor, layer: str, rank: int) -> torch.Tensor:
        fc, gate, proj = (found.tensor(f"{layer}.{n}.weight", rank) for n in ("fc", "gate", "proj"))
        return (torch.nn.functional.silu(x @ fc.T) * (x @ gate.T)) @ proj.T

    x = found.tensor("transformer.vocab_embedding.weight")[ids]
    for i in range(dims.layers):
        layer = f"layers.{i}"
        y = norm(x, f"{layer}.input_layernorm")
        x = x + sum(attention(y, f"transformer.{layer}.attention", rank) for rank in ranks)
        y = norm(x, f"{layer}.post_layernorm")
        x = x + sum(mlp(y, f"transformer.{layer}.mlp", rank) for rank in ranks)
    x = norm(x, "ln_f")
    return torch.cat([x @ found.tensor("lm_head.weight", r).T for r in ranks], dim=-1)[:, :VOCAB]


@pytest.mark.parametrize("tp", [1, 2, 4, 8])  # 8: each of 4 key-value heads on two ranks
def test_logits_are_the_source_models(export: Any, hf_model: Any, tp: int) -> None:
    ids = torch.arange(40) * 7 % 97
    with torch.no_grad():
        want = hf_model(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(logits(export(tp), ids), want, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("dtype", "kind"), [(Dtype.FP16, torch.float16), (Dtype.BF16, torch.bfloat16)]
)
def test_dtypes(export: Any, dtype: Dtype, kind: torch.dtype) -> None:
    found, whole = export(2, dtype), export(2)
    assert found.dtype is dtype
    for tensor in found.names():
        assert torch.equal(found.tensor(tensor, 1), whole.tensor(tensor, 1).to(kind))


def test_the_safetensors_library_reads_it(export: Any) -> None:
    found = export(2)
    theirs = load_file(found.directory / "rank1.safetensors")
    assert set(theirs) == set(found.names())
    for name, tensor in theirs.items():
        assert torch.equal(tensor, found.tensor(name, 1))


def test_config_fields(export: Any, checkpoint: Checkpoint) -> None:
    found = export(2, Dtype.BF16)
    config = json.loads((found.directory / "config.json").read_text())
    want = {
        "architecture": "Qwen2ForCausalLM",
        "dtype": "bfloat16",
        "logits_dtype": "float32",
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_size": 8,
        "hidden_act": "silu",
        "norm_epsilon": 1e-6,
        "position_embedding_type": "rope_gpt_neox",
        "max_position_embeddings": 512,
        "rotary_base": 1e6,
        "rotary_scaling": None,
        "attn_bias": True,
        "mlp_bias": False,
        "qwen_type": "qwen2",
        "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
        "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
        "tie_word_embeddings": False,
        "dycoke": CONFIG.to_dict(),
        "visual_token_base": VOCAB,
    }
    assert {key: config[key] for key in want} == want
    assert found.llm == checkpoint.llm
    assert found.dycoke == CONFIG
    assert found.visual_token_base == VOCAB
    assert found.tp == 2


def test_tp_divides_the_ffn_too() -> None:
    assert allowed_tp(LlmDims(2, 16, 20, 8, 8, 4, 99, False)) == [1, 2, 4]
    assert allowed_tp(LlmDims(2, 16, 24, 8, 2, 4, 99, False)) == [1, 2, 4, 8]
    assert allowed_tp(LlmDims(2, 16, 24, 8, 3, 4, 99, False)) == [1]
    assert allowed_tp(LlmDims(2, 16, 21, 8, 8, 4, 99, False)) == [1]


def test_tp_sizes_of_the_models() -> None:
    sizes = {name: allowed_tp(dims.llm) for name, dims in PRESETS.items()}
    assert sizes == {
        "llava-ov-0.5b": [1, 2],
        "llava-ov-7b": [1, 2, 4],
        "llava-ov-72b": [1, 2, 4, 8],
    }


@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from([1, 2, 4, 8]), st.integers(1, 500))
def test_shards_cover_every_weight_once(group: int, kv: int, tp: int, vocab: int) -> None:
    dims = LlmDims(2, 16, 24, group * kv, kv, 4, vocab, False)
    if tp not in allowed_tp(dims):
        with pytest.raises(DyCokeError, match=f"tp={tp} is impossible"):
            check_tp(dims, tp)
        return
    whole, part = rank_shapes(dims, 1), rank_shapes(dims, tp)
    for name, shape in whole.items():
        factor = torch.Size(part[name]).numel() * tp / torch.Size(shape).numel()
        replicated = "norm" in name or "embedding" in name or "ln_f" in name
        if name == "lm_head.weight":
            assert 1 <= factor < 1 + tp / vocab
        else:
            copies = dims.head_dim * 2 * (max(tp, kv) - kv) if ".qkv." in name else 0
            rows = shape[0]
            assert factor == pytest.approx(tp if replicated else 1 + copies / rows), name


@pytest.mark.parametrize("tp", [0, 3, 16])
def test_impossible_tp_is_refused_by_name(checkpoint: Checkpoint, tmp_path: Path, tp: int) -> None:
    with pytest.raises(DyCokeError, match=f"tp={tp} is impossible for 8 .* allowed: 1, 2, 4, 8$"):
        export_llm(checkpoint, tmp_path / "llm", CONFIG, Dtype.FP32, tp)
    assert list(tmp_path.iterdir()) == []


def test_a_layer_beyond_the_model_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DyCokeError, match="l=3 leaves nothing to prune in a model of 2 layers"):
        export_llm(checkpoint, tmp_path / "llm", DyCokeConfig.paper(), Dtype.FP32)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(DyCokeError, match=r"missing/llm: cannot be written \(No such file"):
        export_llm(checkpoint, tmp_path / "missing" / "llm", CONFIG, Dtype.FP32)


def test_a_bare_llm_is_exported_too(rewrite: Any, tmp_path: Path) -> None:
    source = rewrite("lmms", tower=False)
    config = json.loads((source / "config.json").read_text())
    bare = {k: v for k, v in config.items() if not k.startswith("mm_")} | {"model_type": "qwen2"}
    (source / "config.json").write_text(json.dumps(bare))
    tensors = load_file(source / "model.safetensors")
    kept = {n: t for n, t in tensors.items() if "mm_" not in n and "newline" not in n}
    save_file(kept, source / "model.safetensors")
    export_llm(open_checkpoint(source), tmp_path / "llm", CONFIG, Dtype.BF16)
    assert sorted(p.name for p in (tmp_path / "llm").iterdir()) == [
        "config.json", "rank0.safetensors"
    ]  # fmt: skip
    with pytest.raises(DyCokeError, match="a bare Qwen2; a bundle needs LLaVA-OneVision"):
        export_bundle(source, tmp_path / "bundle", CONFIG)
    assert [p.name for p in tmp_path.iterdir() if p.name != source.name] == ["llm"]


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        config = json.loads((directory / "config.json").read_text())
        change(config)
        (directory / "config.json").write_text(json.dumps(config))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "not a TensorRT-LLM checkpoint"),
        (lambda d: (d / "rank1.safetensors").unlink(), "rank1.safetensors: is missing"),
        (lambda d: (d / "rank0.safetensors").write_bytes(b"123"), "truncated"),
        (edit(lambda c: c.pop("visual_token_base")), "'visual_token_base' is missing"),
        (edit(lambda c: c.update(dtype="int8")), "dtype='int8' is not supported; allowed: float32"),
        (edit(lambda c: c.update(dtype="float16")), "config.json asks for"),
        (edit(lambda c: c.update(vocab_size=100)), "config.json asks for"),
        (edit(lambda c: c.update(architecture="LlamaForCausalLM")), "LlamaForCausalLM"),
        (edit(lambda c: c["mapping"].update(pp_size=2)), "pp_size=2"),
        (edit(lambda c: c["mapping"].update(tp_size=3)), "tp=3 is impossible"),
        (edit(lambda c: c["mapping"].update(tp_size=4)), "config.json asks for"),
        (edit(lambda c: c["dycoke"].update(k=2)), "k=2 is not allowed"),
    ],
)
def test_damaged_exports_are_refused(export: Any, damage: Any, message: str) -> None:
    directory = export(2).directory
    damage(directory)
    with pytest.raises(DyCokeError, match=message) as caught:
        read_llm(directory)
    assert "\n" not in str(caught.value)
