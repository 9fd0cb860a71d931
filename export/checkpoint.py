"""Opens a LLaVA-OneVision checkpoint directory: dimensions at once, tensors when asked for.

Names are mapped from the safetensors headers, never from live modules, and every header is checked
before the first tensor is read: a checkpoint that opens has all tensors, in the right shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..arch.spec import DecoderSpec, TowerSpec
from ..bundle.json_file import read_json
from ..bundle.safetensors_file import CHUNK_BYTES, DTYPES, SafetensorsFile
from ..core.dtype import Dtype
from ..core.errors import DyCokeError
from .model_config import ModelConfig, SourceKind, parse_config
from .names import canonical_name, layer_index, llm_shapes, vision_shapes
from .refusals import refuse_adapters, refuse_quantised, refuse_tensors

_FLOATS = tuple(dtype.safetensors for dtype in Dtype)
_Place = tuple[SafetensorsFile, str]


class Checkpoint:
    """A checked checkpoint. Made by `open_checkpoint`.

    directory: where it lies. kind: `hf` (Hugging Face), `lmms` (LLaVA-NeXT), `qwen2` (LLM only).
    llm, vision: configurations; vision is None for `qwen2`.
    revision: hex SHA-256 over configurations, tensor headers and samples of the data: it tells
        fine-tunes of one shape apart without reading everything.
    """

    def __init__(
        self, directory: Path, config: ModelConfig, places: dict[str, _Place], revision: str
    ) -> None:
        self.directory = directory
        self.config = config
        self.revision = revision
        self._places = places

    @property
    def kind(self) -> SourceKind:
        return self.config.kind

    @property
    def llm(self) -> DecoderSpec:
        return self.config.llm

    @property
    def vision(self) -> TowerSpec | None:
        return self.config.vision

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the LLM's embedding; single tensors may differ."""
        return self.dtype_of("llm.embed_tokens.weight")

    def names(self) -> tuple[str, ...]:
        """Canonical names (export/names.py) of all tensors that an export reads."""
        return tuple(self._places)

    def shape_of(self, name: str) -> tuple[int, ...]:
        file, source = self._places[name]
        return file.entries[source].shape

    def dtype_of(self, name: str) -> torch.dtype:
        file, source = self._places[name]
        return DTYPES[file.entries[source].dtype]

    def tensor(self, name: str) -> Tensor:
        """The whole tensor in the dtype of the checkpoint, in fresh memory."""
        file, source = self._places[name]
        return file.tensor(source)

    def converted(self, piece: Tensor, dtype: torch.dtype, name: str) -> Tensor:
        """A piece of what becomes `name`, in another dtype. Raises DyCokeError for values that the
        dtype cannot hold."""
        converted = piece.to(dtype)
        if not bool(converted.isfinite().all()):
            raise DyCokeError(
                f"{self.directory}: tensor {name} is not finite in {dtype}; export with bf16 or "
                "fp32, or check the checkpoint"
            )
        return converted

    def chunks(
        self, name: str, start: int, stop: int, limit: int = CHUNK_BYTES
    ) -> Iterator[Tensor]:
        """Rows start..stop-1 of a tensor, in pieces of at most `limit` bytes."""
        file, source = self._places[name]
        return file.chunks(source, start, stop, limit)


def open_checkpoint(directory: Path | str, vision_tower: Path | str | None = None) -> Checkpoint:
    """Reads configuration and headers; no tensor yet.

    vision_tower: directory of the SigLIP checkpoint, for LLaVA-NeXT checkpoints that leave the
        tower's weights out. Where the checkpoint holds them, only its config.json is used.
    Raises DyCokeError, one line, for everything that is not a complete supported checkpoint.
    """
    directory = Path(directory)
    config_path = directory / "config.json"
    refuse_adapters(directory)
    if not config_path.is_file():
        raise DyCokeError(
            f"{directory}: not a checkpoint (no config.json); give the directory that holds "
            "config.json and *.safetensors"
        )
    tower_directory = None if vision_tower is None else Path(vision_tower)
    tower_config = None if tower_directory is None else read_json(tower_directory / "config.json")
    generation_path = directory / "generation_config.json"
    source = read_json(config_path)
    refuse_quantised(directory, source)
    config = parse_config(
        source,
        read_json(generation_path) if generation_path.is_file() else {},
        tower_config,
        str(config_path),
    )
    if tower_directory is not None and config.kind != "lmms":
        raise DyCokeError(
            f"--vision-tower {tower_directory}: {directory} already names its tower; "
            "leave the option out"
        )
    files = _shards(directory)
    places = _places(files)
    if tower_directory is not None and not any(n.startswith("vision.") for n in places):
        tower_files = _shards(tower_directory)
        places |= {n: p for n, p in _places(tower_files).items() if n.startswith("vision.")}
        files += tower_files
    if config.kind == "lmms" and not any(name.startswith("vision.") for name in places):
        raise DyCokeError(
            f"{directory}: holds no vision tower weights; give the directory of its SigLIP "
            "checkpoint with --vision-tower"
        )
    used = _check(directory, config, places)
    return Checkpoint(directory, config, used, _revision(config_path, files))


def _shards(directory: Path) -> list[SafetensorsFile]:
    """All safetensors files of a checkpoint directory, each complete and as the index says.

    model.safetensors comes before an index, as in transformers: an index beside it is a stale one.
    """
    single, index_path = (directory / f"model.safetensors{end}" for end in ("", ".index.json"))
    if single.is_file():
        return [SafetensorsFile(single)]
    if not index_path.is_file():
        raise DyCokeError(
            f"{directory}: not a safetensors checkpoint ({_instead(directory)}); expected "
            "model.safetensors or model.safetensors.index.json"
        )
    weight_map = read_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DyCokeError(f"{index_path}: has no weight_map; download the index again")
    files = {}
    for shard in sorted({str(value) for value in weight_map.values()}):
        path = directory / shard
        if Path(shard).name != shard or not path.is_file():
            count = sum(value == shard for value in weight_map.values())
            raise DyCokeError(
                f"{directory}: shard {shard} is missing ({count} of {len(weight_map)} tensors); "
                "download it again"
            )
        files[shard] = SafetensorsFile(path)
    for name, shard in weight_map.items():
        if name not in files[shard].entries:
            raise DyCokeError(
                f"{files[shard].path}: tensor {name} is missing, but {index_path.name} places it "
                "there; download both again"
            )
    return list(files.values())


def _instead(directory: Path) -> str:
    """What lies where weights are expected."""
    if any(directory.glob("model-*-of-*.safetensors")):
        return "shards without their index"
    if others := sorted(path.name for path in directory.glob("*.safetensors")):
        return f"only {others[0]}"
    if (directory / "mm_projector.bin").is_file():
        return "a projector alone, mm_projector.bin"
    for pattern in ("*.bin", "*.pth", "*.gguf"):
        if any(directory.glob(pattern)):
            return f"{pattern} weights only"
    return "no weights"


def _places(files: list[SafetensorsFile]) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    for file in files:
        refuse_tensors(file.path, file.entries)
        for source in file.entries:
            name = canonical_name(source)
            if name is None:
                continue
            if name in places:
                raise DyCokeError(f"{file.path}: {source} and {places[name][1]} are both {name}")
            places[name] = (file, source)
    return places


def _check(directory: Path, config: ModelConfig, places: dict[str, _Place]) -> dict[str, _Place]:
    """The places of the tensors that are used, in model order; refuses what does not fit."""
    expected = llm_shapes(config.llm)
    head, embedding = "llm.lm_head.weight", "llm.embed_tokens.weight"
    if config.vision is not None:
        expected |= vision_shapes(config.vision, config.llm.hidden)
        if config.newline == "no_token":  # some hold one that nothing reads
            expected.pop("image_newline")
            places.pop("image_newline", None)
    expected[head] = expected[embedding]
    if head not in places and config.llm.tied_embeddings and embedding in places:
        places[head] = places[embedding]
    for name, shape in expected.items():
        if name not in places:
            raise DyCokeError(
                f"{directory}: tensor {name} {list(shape)} is missing; download the checkpoint "
                "again, or correct config.json"
            )
        file, source = places[name]
        entry = file.entries[source]
        if entry.dtype not in _FLOATS:
            raise DyCokeError(
                f"{file.path}: tensor {source} is {entry.dtype}; allowed: {', '.join(_FLOATS)}; "
                "export from the unquantised checkpoint"
            )
        if entry.shape != shape:
            raise DyCokeError(
                f"{file.path}: tensor {source} has shape {list(entry.shape)}, config.json asks for "
                f"{list(shape)}; one of them is of another model"
            )
    depth = config.vision.layers if config.vision else 0
    for name, (file, source) in places.items():
        beyond = name.startswith("vision.") and layer_index(name) >= depth
        if name not in expected and not beyond:
            raise DyCokeError(
                f"{file.path}: tensor {source} is no part of LLaVA-OneVision as config.json "
                "describes it; one of the two is of another model"
            )
    return {name: places[name] for name in expected}


def _revision(config_path: Path, files: list[SafetensorsFile]) -> str:
    digest = hashlib.sha256(config_path.read_bytes())
    for file in files:
        digest.update(file.path.name.encode())
        digest.update(file.header)
        digest.update(file.sample())
    return digest.hexdigest()
