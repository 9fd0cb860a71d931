"""Reads an exported TensorRT-LLM checkpoint directory back, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ..core.errors import DyCokeError
from .llm_config import LlmConfig, read_llm_config
from .llm_layout import rank_shapes
from .paths import LLM_CONFIG, rank_file
from .safetensors_file import SafetensorsFile


@dataclass(frozen=True)
class LlmCheckpoint(LlmConfig):
    """An exported LLM: what config.json says, and its tensors on demand."""

    directory: Path
    _ranks: tuple[SafetensorsFile, ...]

    def names(self) -> tuple[str, ...]:
        """Names of the tensors of every rank (bundle/llm_layout.py)."""
        return tuple(rank_shapes(self.llm, self.tp))

    def tensor(self, name: str, rank: int = 0) -> Tensor:
        """One rank's tensor, in fresh memory."""
        return self._ranks[rank].tensor(name)


def read_llm(directory: Path | str) -> LlmCheckpoint:
    """Opens a directory that `export_llm` wrote; every header is checked, no tensor is read.

    Raises DyCokeError for missing or truncated rank files and what does not fit config.json.
    """
    directory = Path(directory)
    config = read_llm_config(directory)
    ranks = tuple(_rank(directory, rank, config) for rank in range(config.tp))
    return LlmCheckpoint(**vars(config), directory=directory, _ranks=ranks)


def _rank(directory: Path, rank: int, config: LlmConfig) -> SafetensorsFile:
    path = directory / rank_file(rank)
    if not path.is_file():
        raise DyCokeError(
            f"{path}: is missing, {LLM_CONFIG} says tp_size={config.tp}; export again"
        )
    file = SafetensorsFile(path)
    for name, shape in rank_shapes(config.llm, config.tp).items():
        entry, wanted = file.entries.get(name), (shape, config.dtype.safetensors)
        held = entry and (entry.shape, entry.dtype)
        if held != wanted:
            raise DyCokeError(
                f"{path}: tensor {name} is {held}, {LLM_CONFIG} asks for {wanted}; export again"
            )
    return file
