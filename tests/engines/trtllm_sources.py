"""What the model class and the build rely on, looked up in TensorRT-LLM's own Python files.

Nothing of them is imported. Reference: files around release 1.2, whose own tag was not at hand,
read at commits 65f1d15 (commands/build.py), c20322f (plugin/plugin.py), 04a2cac (models/qwen),
01ea6d7 (models/modeling_utils.py), 008b2b8 (builder.py, older than 1.2: it still imports
auto_parallel). What only newer releases than a given folder have is said by its release.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from dycoke_trt.engines.plugin_nodes import ROPE_INPUTS, SCORE_INPUTS, SELECT_INPUTS

FUNCTIONAL, ATTENTION = "functional.py", "layers/attention.py"
MODELING, QWEN = "models/modeling_utils.py", "models/qwen/model.py"
MIXIN, BUILDER = "models/generation_mixin.py", "builder.py"
COMMAND, PLUGIN, COMMON = "commands/build.py", "plugin/plugin.py", "_common.py"
EAGLE, VERSION = "models/eagle/model.py", "version.py"
FILES = (
    FUNCTIONAL, ATTENTION, MODELING, QWEN, MIXIN, BUILDER, COMMAND, PLUGIN, COMMON, EAGLE, VERSION
)  # fmt: skip

_OURS = {"input_ids", "keep_table", "cos_sin"}  # added by engines/llm_nodes.py
READ = {*ROPE_INPUTS, *SCORE_INPUTS, *SELECT_INPUTS} - _OURS | {"layer_idx", "kv_quant_orig_scale"}
REPLACED = {
    "qkv", "kv_cache_block_offsets", "sequence_length", "position_embedding_type",
    "rotary_embedding_dim", "rotary_inv_freq", "rotary_cos_sin",
}  # fmt: skip
# prepare_inputs' keywords that our class and its refusals read; builder.build passes all of them.
PREPARED = {"max_seq_len", "max_beam_width", "prompt_embedding_table_size", "max_draft_len"}
PLUGIN_OPTIONS = {"nccl_plugin", "tokens_per_block", "streamingllm", "reduce_fusion"}


@dataclass(frozen=True)
class Parameters:
    """Of a function, without self. required: those without a default. open: takes any keyword."""

    names: tuple[str, ...]
    required: frozenset[str]
    open: bool

    def refuse(self, positional: int, keywords: set[str]) -> list[str]:
        """Why a call of this form would be a TypeError; empty if it would not."""
        given = {*self.names[:positional], *keywords}
        found = [] if self.open else [f"takes no {n}" for n in sorted(keywords - {*self.names})]
        if positional > len(self.names):
            found.append(f"takes {len(self.names)} positional arguments, not {positional}")
        return found + [f"needs {name}" for name in sorted(self.required - given)]


@cache
def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


class Sources:
    """The files of one release below folder/tensorrt_llm. Lookups raise LookupError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "tensorrt_llm"

    @cached_property
    def release(self) -> str:
        found = re.search(r'^__version__ = "(.*)"', self.text(VERSION), re.MULTILINE)
        if found is None:
            raise LookupError(f"{VERSION} names no version")
        return found[1]

    @property
    def number(self) -> tuple[int, int]:
        major, minor = self.release.split(".")[:2]
        return int(major), int(minor)

    def text(self, file: str) -> str:
        return (self.folder / file).read_text()

    def tree(self, file: str) -> ast.Module:
        return _parsed((self.folder / file).resolve())

    def find(self, file: str, path: str) -> Any:
        """A function or class, by name; `Class.method` for one of a class's own."""
        node: Any = self.tree(file)
        for name in path.split("."):
            kinds = ast.FunctionDef | ast.ClassDef
            found = [n for n in node.body if isinstance(n, kinds) and n.name == name]
            if not found:
                raise LookupError(f"{file} defines no {path}")
            node = found[-1]
        return node

    def parameters(self, file: str, path: str) -> Parameters:
        arguments = self.find(file, path).args
        names = [a.arg for a in arguments.args]
        required = names[: len(names) - len(arguments.defaults)]
        required += [
            a.arg
            for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
            if default is None
        ]
        names += [a.arg for a in arguments.kwonlyargs]
        drop = {"self", "cls"}
        return Parameters(
            tuple(n for n in names if n not in drop),
            frozenset(required) - drop,
            arguments.kwarg is not None,
        )

    def calls(self, file: str, within: str, name: str) -> list[ast.Call]:
        """Calls of `name`, with or without something before a dot, in a function or class."""
        return [
            node
            for node in ast.walk(self.find(file, within))
            if isinstance(node, ast.Call)
            and name in (getattr(node.func, "id", None), getattr(node.func, "attr", None))
        ]

    def bases(self, file: str, name: str) -> list[str]:
        return [ast.unparse(base) for base in self.find(file, name).bases]

    def members(self, file: str, name: str) -> set[str]:
        """Names that a class body assigns, with or without a type."""
        found: set[str] = set()
        for node in self.find(file, name).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", 0)]
            found |= {t.id for t in targets if isinstance(t, ast.Name)}
        return found

    def build_options(self) -> tuple[set[str], set[str]]:
        """Names of trtllm-build's options, and those of them that must be given."""
        names: set[str] = set()
        required: set[str] = set()
        for call in self.calls(COMMAND, "parse_arguments", "add_argument"):
            mine = {str(ast.literal_eval(a)).lstrip("-") for a in call.args}
            names |= mine
            if any(k.arg == "required" and ast.unparse(k.value) == "True" for k in call.keywords):
                required |= mine
        for node in self.tree(PLUGIN).body:  # cli_plugin_args = [...]
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "cli_plugin_args":
                names |= set(ast.literal_eval(node.value))
        return names, required


def _keywords(call: ast.Call) -> set[str]:
    return {keyword.arg for keyword in call.keywords if keyword.arg is not None}


def _missing(wanted: set[str], found: set[str], where: str) -> Iterator[str]:
    for name in sorted(wanted - found):
        yield f"{where} has no {name}"


def check_attention(sources: Sources) -> Iterator[str]:
    """Attention ends in one call of gpt_attention, by keywords, and the function takes them."""
    calls = sources.calls(ATTENTION, "Attention", "gpt_attention")
    if len(calls) != 1:
        yield f"{ATTENTION}: Attention calls gpt_attention {len(calls)} times, not once"
        return
    if calls[0].args:
        yield f"{ATTENTION}: gpt_attention is called with positional arguments"
    given = _keywords(calls[0])
    yield from _missing(READ | REPLACED, given, f"{ATTENTION}: the call of gpt_attention")
    function = sources.parameters(FUNCTIONAL, "gpt_attention")
    yield from _missing(READ | REPLACED, set(function.names), f"{FUNCTIONAL}: gpt_attention")
    for problem in function.refuse(0, given):
        yield f"{FUNCTIONAL}: gpt_attention {problem}, as {ATTENTION} calls it"
    if "gpt_attention" not in sources.text(ATTENTION).partition("class ")[0]:
        yield f"{ATTENTION}: gpt_attention is no name of the module, so it cannot be replaced there"


def check_functions(sources: Sources) -> Iterator[str]:
    """What engines/llm_nodes.py calls, as it calls it."""
    for file, name, positional, keywords in (
        (FUNCTIONAL, "constant", 1, set()),
        (FUNCTIONAL, "_create_tensor", 2, set()),
        (FUNCTIONAL, "allreduce", 2, {"all_reduce_params"}),
        (FUNCTIONAL, "AllReduceParams.__init__", 0, {"strategy"}),
        (COMMON, "default_net", 0, set()),
        (COMMON, "default_trtnet", 0, set()),
    ):
        for problem in sources.parameters(file, name).refuse(positional, keywords):
            yield f"{file}: {name} {problem}"
    yield from _missing(
        {"NCCL"}, sources.members(FUNCTIONAL, "AllReduceStrategy"), f"{FUNCTIONAL}: strategies"
    )
    yield from _missing(
        {"learned_absolute"},
        sources.members(FUNCTIONAL, "PositionEmbeddingType"),
        f"{FUNCTIONAL}: PositionEmbeddingType",
    )
    if "nccl_plugin" not in ast.unparse(sources.find(FUNCTIONAL, "allreduce")):
        yield f"{FUNCTIONAL}: allreduce does not read plugin_config.nccl_plugin"
    options = {name.lstrip("_") for name in sources.members(PLUGIN, "PluginConfig")}  # _ in 0.17
    yield from _missing(PLUGIN_OPTIONS, options, f"{PLUGIN}: PluginConfig")
    for name in ("get_creator", "create_plugin", "add_plugin_v3"):  # how its V3 plugins are added
        if not re.search(rf"\b{name}\b", sources.text(EAGLE)):
            yield f"{EAGLE} has no {name}"


def check_model_class(sources: Sources) -> Iterator[str]:
    """The hooks that DycokeQwen2ForCausalLM overrides, and who calls them how."""
    expected = {
        (QWEN, "QWenForCausalLM"): "DecoderModelForCausalLM",
        (MODELING, "DecoderModelForCausalLM"): "PretrainedModel",
    }
    for (file, name), base in expected.items():
        if base not in sources.bases(file, name):
            yield f"{file}: {name} is no {base}"
    own = {
        node.name
        for node in sources.find(QWEN, "QWenForCausalLM").body
        if isinstance(node, ast.FunctionDef)
    }
    for name in sorted({"forward", "prepare_inputs"} & own):
        yield f"{QWEN}: QWenForCausalLM has a {name} of its own"
    for problem in sources.parameters(QWEN, "QWenForCausalLM.__init__").refuse(1, set()):
        yield f"{QWEN}: QWenForCausalLM {problem}"
    forward = sources.parameters(MODELING, "DecoderModelForCausalLM.forward")
    if forward.names[:1] != ("input_ids",):
        yield f"{MODELING}: DecoderModelForCausalLM.forward does not begin with input_ids"
    if "config_class" not in sources.members(QWEN, "QWenForCausalLM"):
        yield f"{QWEN}: QWenForCausalLM has no config_class"

    prepare = sources.parameters(MODELING, "PretrainedModel.prepare_inputs")
    yield from _missing(PREPARED, set(prepare.names), f"{MODELING}: prepare_inputs")
    passed = _prepared(sources)
    yield from _missing(PREPARED, passed, f"{BUILDER}: prepare_input_args")
    for problem in prepare.refuse(0, passed):
        yield f"{MODELING}: prepare_inputs {problem}, as {BUILDER} calls it"
    if not any(
        not call.args and [k.arg for k in call.keywords] == [None]
        for call in sources.calls(BUILDER, "build", "prepare_inputs")
    ):
        yield f"{BUILDER}: build does not call prepare_inputs(**...)"

    for problem in sources.parameters(MODELING, "PretrainedModel.from_checkpoint").refuse(
        1, {"config"}
    ):
        yield f"{MODELING}: from_checkpoint {problem}"
    if not sources.parameters(MODELING, "PretrainedConfig.__init__").open:
        yield f"{MODELING}: PretrainedConfig takes no fields of ours"


def _prepared(sources: Sources) -> set[str]:
    """Keys of the first dictionary prepare_input_args in builder.build."""
    for node in ast.walk(sources.find(BUILDER, "build")):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "prepare_input_args":
            assert isinstance(node.value, ast.Dict)
            return {k.value for k in node.value.keys if isinstance(k, ast.Constant)}  # type: ignore[misc]
    raise LookupError(f"{BUILDER}: build makes no prepare_input_args")


def check_config(sources: Sources, config: dict[str, Any]) -> Iterator[str]:
    """config: of an exported checkpoint. Other names than parameters become attributes."""
    for problem in sources.parameters(MODELING, "PretrainedConfig.__init__").refuse(0, set(config)):
        yield f"{MODELING}: PretrainedConfig {problem}"


def check_command(sources: Sources, command: list[str]) -> Iterator[str]:
    """command: of engines/llm_engine.py, with the hook for our class."""
    known, required = sources.build_options()
    given = {word[2:] for word in command[1:] if word.startswith("--")}
    yield from _missing(given, known, f"{COMMAND}: trtllm-build")
    for name in sorted(required - given):
        yield f"{COMMAND}: trtllm-build needs --{name}"
    text = ast.unparse(sources.find(COMMAND, "main"))
    for part in ("SourceFileLoader", "args.model_cls_file", "args.model_cls_name"):
        if part not in text:
            yield f"{COMMAND}: main does not use {part}"
    if not any(
        _keywords(call) == {"config"}
        for call in sources.calls(COMMAND, "build_model", "from_checkpoint")
    ):
        yield f"{COMMAND}: build_model does not call from_checkpoint(..., config=...)"


REFERENCE = (1, 2)


def check_pool_mapping(sources: Sources) -> Iterator[str]:
    """The plugins read host_kv_cache_pool_mapping as [layers, 2]: a layer's pool, its place in it.

    So it is in 1.2; 0.17 has [layers].
    """
    for node in ast.walk(sources.tree(MIXIN)):
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == ("host_kv_cache_pool_mapping")
            and isinstance(node.value, ast.Call)
        ):
            (shape,) = [k.value for k in node.value.keywords if k.arg == "shape"]
            if not isinstance(shape, ast.List) or len(shape.elts) != 2:
                yield f"{MIXIN}: host_kv_cache_pool_mapping is {ast.unparse(shape)}"
            return
    yield f"{MIXIN} makes no host_kv_cache_pool_mapping"


def problems(sources: Sources, command: list[str], config: dict[str, Any]) -> list[str]:
    """All that does not fit, but for what this release is too old for."""
    checks: list[Callable[[], Iterator[str]]] = [
        lambda: check_attention(sources),
        lambda: check_functions(sources),
        lambda: check_model_class(sources),
        lambda: check_config(sources, config),
        lambda: check_command(sources, command),
    ]
    if sources.number >= REFERENCE:
        checks.append(lambda: check_pool_mapping(sources))
    found: list[str] = []
    for check in checks:
        try:
            found += check()
        except LookupError as error:
            found.append(str(error.args[0]))
    return found
