"""What the model class and the build rely on is there in TensorRT-LLM's own Python files.

TRTLLM_SOURCE_DIR: a directory that holds tensorrt_llm/ (a clone, or an installed wheel's parent);
names of tests say its release. Without it the checks run on a small source that fits, written
here. Either way, renaming one name in one file must be noticed.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.bundle.manifest import read_manifest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.engines.build_plan import plan_build
from dycoke_trt.engines.llm_engine import build_command
from dycoke_trt.engines.model import model_of_bundle
from dycoke_trt.engines.target_gpus import find_target_gpu
from dycoke_trt.tests.engines import trtllm_sources as trtllm
from dycoke_trt.tests.engines.trtllm_sources import Sources, check_pool_mapping, problems
from dycoke_trt.tests.support import demo_bundle

FOLDER = os.environ.get("TRTLLM_SOURCE_DIR")
RELEASE = Sources(Path(FOLDER)).release if FOLDER else "unset"
# Names that our code uses, each in a file that has it.
RENAMED = [
    (trtllm.FUNCTIONAL, "kv_cache_block_offsets"),
    (trtllm.FUNCTIONAL, "sequence_length"),
    (trtllm.FUNCTIONAL, "rotary_cos_sin"),
    (trtllm.FUNCTIONAL, "layer_idx"),
    (trtllm.FUNCTIONAL, "all_reduce_params"),
    (trtllm.FUNCTIONAL, "strategy"),
    (trtllm.FUNCTIONAL, "NCCL"),
    (trtllm.FUNCTIONAL, "learned_absolute"),
    (trtllm.FUNCTIONAL, "_create_tensor"),
    (trtllm.ATTENTION, "gpt_attention"),
    (trtllm.ATTENTION, "host_kv_cache_pool_mapping"),
    (trtllm.ATTENTION, "position_embedding_type"),
    (trtllm.MODELING, "prompt_embedding_table_size"),
    (trtllm.MODELING, "from_checkpoint"),
    (trtllm.QWEN, "QWenForCausalLM"),
    (trtllm.BUILDER, "max_beam_width"),
    (trtllm.COMMAND, "model_cls_file"),
    (trtllm.COMMAND, "max_multimodal_len"),
    (trtllm.PLUGIN, "use_paged_context_fmha"),
    (trtllm.COMMON, "default_trtnet"),
    (trtllm.EAGLE, "add_plugin_v3"),
]


@pytest.fixture(scope="module")
def command() -> list[str]:
    bundle = demo_bundle(DyCokeConfig())
    plan = plan_build(model_of_bundle(bundle), find_target_gpu("h100"))
    here = Path("x")
    return build_command(here, here, read_manifest(bundle), plan, here, here)


@pytest.fixture(scope="module")
def config() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (demo_bundle(DyCokeConfig()) / "llm" / "config.json").read_text()
    )
    return found


def write_fitting_source(folder: Path, command: list[str]) -> None:
    """The least that satisfies every check."""
    keywords = sorted(trtllm.READ | trtllm.REPLACED)
    given = ", ".join(f"{name}={name}" for name in keywords)
    options = [word for word in command[1:] if word.startswith("--")]
    of_plugins = ["--use_paged_context_fmha"]
    arguments = "\n".join(
        f"    parser.add_argument({word!r})" for word in options if word not in of_plugins
    )
    prepared = sorted(trtllm.PREPARED)
    entries = ", ".join(f"{name!r}: 0" for name in prepared)
    files = {
        trtllm.VERSION: '__version__ = "1.2.0"',
        trtllm.FUNCTIONAL: f"""
class PositionEmbeddingType:
    learned_absolute = 0
class AllReduceStrategy:
    NCCL = 0
class AllReduceParams:
    def __init__(self, strategy=AllReduceStrategy.NCCL): ...
def constant(ndarray): ...
def _create_tensor(trt_tensor, producer): ...
def allreduce(tensor, group, all_reduce_params=None):
    net.plugin_config.nccl_plugin
def gpt_attention(*, {", ".join(f"{name}=None" for name in keywords)}): ...
""",
        trtllm.ATTENTION: f"""
from ..functional import gpt_attention
class Attention:
    def forward(self):
        gpt_attention({given})
""",
        trtllm.MODELING: f"""
class PretrainedConfig:
    def __init__(self, *, architecture, dtype, hidden_size, **kwargs): ...
class PretrainedModel:
    def prepare_inputs(self, {", ".join(prepared)}): ...
    @classmethod
    def from_checkpoint(cls, ckpt_dir, config=None): ...
class DecoderModelForCausalLM(PretrainedModel):
    def forward(self, input_ids, use_cache=False): ...
""",
        trtllm.QWEN: """
class QWenForCausalLM(DecoderModelForCausalLM):
    config_class = 0
    def __init__(self, config): ...
""",
        trtllm.MIXIN: """
host_kv_cache_pool_mapping = Tensor(shape=[layers, 2])
""",
        trtllm.BUILDER: f"""
def build(model):
    prepare_input_args = {{{entries}}}
    model.prepare_inputs(**prepare_input_args)
""",
        trtllm.COMMAND: f"""
def parse_arguments():
{arguments}
def build_model():
    model_cls.from_checkpoint(ckpt_dir, config=rank_config)
def main():
    SourceFileLoader(args.model_cls_file), args.model_cls_name
""",
        trtllm.PLUGIN: f"""
class PluginConfig:
    {"; ".join(f"{name}: int = 0" for name in sorted(trtllm.PLUGIN_OPTIONS))}
cli_plugin_args = {[word.removeprefix("--") for word in of_plugins]!r}
""",
        trtllm.COMMON: """
def default_net(): ...
def default_trtnet(): ...
""",
        trtllm.EAGLE: """
registry.get_creator, creator.create_plugin, network.add_plugin_v3
""",
    }
    assert set(files) == set(trtllm.FILES)
    for name, text in files.items():
        path = folder / "tensorrt_llm" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(
    scope="module",
    params=[
        "written",
        pytest.param(
            RELEASE,
            marks=pytest.mark.skipif(FOLDER is None, reason="needs TRTLLM_SOURCE_DIR"),
        ),
    ],
)
def folder(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, command: list[str]
) -> Path:
    if request.param == "written":
        made = tmp_path_factory.mktemp("written")
        write_fitting_source(made, command)
        return made
    return Path(str(FOLDER))


def test_everything_fits(folder: Path, command: list[str], config: dict[str, Any]) -> None:
    assert problems(Sources(folder), command, config) == []


@pytest.mark.parametrize(("file", "name"), RENAMED)
def test_a_renamed_name_is_noticed(
    folder: Path, command: list[str], config: dict[str, Any], tmp_path: Path, file: str, name: str
) -> None:
    for other in trtllm.FILES:
        path = tmp_path / "tensorrt_llm" / other
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to((folder / "tensorrt_llm" / other).resolve())
    text = (folder / "tensorrt_llm" / file).read_text()
    renamed, count = re.subn(rf"\b{name}\b", f"{name}_x", text)
    assert count > 0
    copy = tmp_path / "tensorrt_llm" / file
    copy.unlink()
    copy.write_text(renamed)
    found = problems(Sources(tmp_path), command, config)
    assert any(name in problem for problem in found), found


def test_the_pool_mapping_is_that_of_the_reference(folder: Path) -> None:
    """Folders of releases before it cannot show what the plugins need."""
    sources = Sources(folder)
    found = list(check_pool_mapping(sources))
    if sources.number < trtllm.REFERENCE:
        assert found == [
            "models/generation_mixin.py: host_kv_cache_pool_mapping is [len(local_attn_layers)]"
        ]
        pytest.skip(f"{sources.release} is older than 1.2: {found[0]}")
    assert found == []


def test_the_folder_is_of_the_reference_release() -> None:
    """Skipped where all the above was shown for another release than engines are built with."""
    if FOLDER is None:
        pytest.skip("needs TRTLLM_SOURCE_DIR")
    if Sources(Path(FOLDER)).number != trtllm.REFERENCE:
        pytest.skip(f"TRTLLM_SOURCE_DIR: {RELEASE}; engines are built with 1.2")


def test_the_checks_know_a_missing_and_a_required_argument() -> None:
    function = trtllm.Parameters(("a", "b"), frozenset({"a"}), open=False)
    assert function.refuse(1, {"b"}) == []
    assert function.refuse(0, {"b"}) == ["needs a"]
    assert function.refuse(1, {"c"}) == ["takes no c"]
    assert function.refuse(3, set()) == ["takes 2 positional arguments, not 3"]
