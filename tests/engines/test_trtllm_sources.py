"""What the model class relies on, looked up in TensorRT-LLM's own Python files.

TRTLLM_SOURCE_DIR: a directory that holds tensorrt_llm/ (a clone, or an installed wheel's parent).
Nothing of it is imported, so no GPU is needed. A keyword that was renamed there fails here.
"""

from __future__ import annotations

import ast
import os
from functools import cache
from pathlib import Path

import pytest
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.engines.build_plan import plan_build
from dycoke_trt.engines.llm_engine import build_command
from dycoke_trt.engines.model import model_of_bundle
from dycoke_trt.engines.plugin_nodes import ROPE_INPUTS, SCORE_INPUTS, SELECT_INPUTS
from dycoke_trt.engines.targets import find_target
from dycoke_trt.tests.support import demo_bundle

FOLDER = os.environ.get("TRTLLM_SOURCE_DIR")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="needs TRTLLM_SOURCE_DIR")
OURS = {"input_ids", "keep_table", "cos_sin"}  # added by engines/llm_nodes.py
READ = {*ROPE_INPUTS, *SCORE_INPUTS, *SELECT_INPUTS} - OURS | {"layer_idx", "kv_quant_orig_scale"}
REPLACED = {
    "qkv", "kv_cache_block_offsets", "sequence_length", "position_embedding_type",
    "rotary_embedding_dim", "rotary_inv_freq", "rotary_cos_sin",
}  # fmt: skip


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((Path(str(FOLDER)) / "tensorrt_llm" / name).read_text())


def definition(name: str, wanted: str) -> ast.FunctionDef | ast.ClassDef:
    found = [
        node
        for node in ast.walk(tree(name))
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == wanted
    ]
    assert found, f"{name} defines no {wanted}"
    return found[0]


def parameters(function: ast.AST) -> set[str]:
    assert isinstance(function, ast.FunctionDef)
    return {a.arg for a in (*function.args.args, *function.args.kwonlyargs)}


def texts(name: str) -> set[str]:
    return {n.value for n in ast.walk(tree(name)) if isinstance(n, ast.Constant)}  # type: ignore[misc]


def test_attention_calls_gpt_attention_once_by_keywords() -> None:
    calls = [
        node
        for node in ast.walk(definition("layers/attention.py", "Attention"))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "gpt_attention"
    ]
    assert len(calls) == 1
    assert calls[0].args == []
    given = {keyword.arg for keyword in calls[0].keywords}
    assert given >= READ | REPLACED


def test_functions() -> None:
    stock = parameters(definition("functional.py", "gpt_attention"))
    assert stock >= READ | REPLACED
    assert {"tensor", "group", "all_reduce_params"} <= parameters(
        definition("functional.py", "allreduce")
    )
    for name in ("constant", "_create_tensor", "AllReduceParams", "AllReduceStrategy"):
        definition("functional.py", name)
    embedding = definition("functional.py", "PositionEmbeddingType")
    assert "learned_absolute" in ast.unparse(embedding)


def test_the_model_class_and_what_is_called_on_it() -> None:
    model = definition("models/qwen/model.py", "QWenForCausalLM")
    assert isinstance(model, ast.ClassDef)
    assert [ast.unparse(base) for base in model.bases] == ["DecoderModelForCausalLM"]
    options = parameters(definition("models/modeling_utils.py", "prepare_inputs"))
    read = {"max_seq_len", "max_beam_width", "prompt_embedding_table_size", "max_draft_len"}
    assert options >= read
    assert texts("builder.py") >= read  # passed by keyword from a dictionary


def test_options_of_trtllm_build() -> None:
    bundle = demo_bundle(DyCokeConfig())
    plan = plan_build(model_of_bundle(bundle), find_target("h100"))
    here = Path("x")
    command = build_command(here, here, read_manifest(bundle), plan, here, here)
    options = {word[2:] for word in command[1:] if word.startswith("--")}
    known = {str(text).removeprefix("--") for text in texts("commands/build.py")}
    assert options <= known | {str(text) for text in texts("plugin/plugin.py")}
