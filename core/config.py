"""`DyCokeConfig`: the parameters of the method, validated and frozen."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from .decisions import GateMode
from .errors import DyCokeError

Granularity = Literal["block", "token"]
BlockReduce = Literal["sum", "max"]
Order = Literal["raster", "importance"]

# What `ttm` may be: the modes of core/ttm.py, and what compress/ registers.
TTM_MODES = ["paper", "reference", "random", "off"]
_AUTHORS_NAMES = {"dycoke_k": "k", "dycoke_l": "l", "dycoke_p": "p"}
_AUTHORS_LAYOUT = ("dycoke_num_tokens_per_frame", "image_token_start_index")


@dataclass(frozen=True)
class DyCokeConfig:
    """DyCoke's parameters under the names of the paper (arXiv 2411.15024).

    k: TTM pruning rate K, 0 <= k < 1: the share of each comparable frame that TTM drops.
    l: attention evaluation layer L, an integer >= 0: layers >= l attend to the reduced set.
    p: KV pruning rate P, 0 <= p < 1: the share of visual tokens (or blocks) left out in decoding.
    ttm: which temporal merging: the paper's, the authors' released code's, random, or none (`off`);
        or another method of compress/.
    gate: what a decode step does while its scores resemble the previous step's: `reuse` the
        selection (paper), attend to the `full` cache (released code), `always` reselect, or keep
        the first selection for good (`once`).
    gate_threshold: cosine at and above which scores count as unchanged, 0..1 (paper: 0.9).
    granularity: `block` selects whole KV blocks; `token` selects tokens, as the paper does (the
        native backend and the accuracy oracle; TensorRT-LLM attends to blocks alone).
    block_reduce: how a block's score comes from its tokens' scores.
    seed: seed of `ttm="random"`.
    memory: weight m of the past in the averaged scores that selection ranks,
        a_t = m a_(t-1) + (1-m) s_t with a_1 = s_1, 0 <= memory < 1. 0 is the paper's rule. The gate
        compares raw scores whatever `memory` says.
    order: how visual tokens lie in blocks: `raster` as they came (paper), or by `importance`, where
        each new selection moves the selected tokens to the blocks that are kept.

    The last two are not the paper's: see docs/method.md.

    Raises DyCokeError, naming field, value and allowed range, for any invalid value.
    """

    k: float = 0.7
    l: int = 3
    p: float = 0.7
    ttm: str = "paper"
    gate: str = GateMode.REUSE.label
    gate_threshold: float = 0.9
    granularity: Granularity = "block"
    block_reduce: BlockReduce = "sum"
    seed: int = 0
    memory: float = 0.0
    order: Order = "raster"

    def __post_init__(self) -> None:
        object.__setattr__(self, "k", _number("k", self.k, upper_open=True))
        object.__setattr__(self, "p", _number("p", self.p, upper_open=True))
        object.__setattr__(self, "gate_threshold", _number("gate_threshold", self.gate_threshold))
        _integer("l", self.l, upper=None)
        _integer("seed", self.seed, upper=2**63 - 1)
        _choice("ttm", self.ttm, tuple(TTM_MODES))
        _choice("gate", self.gate, tuple(mode.label for mode in GateMode))
        _choice("granularity", self.granularity, get_args(Granularity))
        _choice("block_reduce", self.block_reduce, get_args(BlockReduce))
        object.__setattr__(self, "memory", _number("memory", self.memory, upper_open=True))
        _choice("order", self.order, get_args(Order))
        if self.gate == GateMode.ONCE.label and self.memory > 0:
            raise DyCokeError(
                f"memory={self.memory} has no effect with gate='once', which selects in the first "
                "step alone; allowed there: memory=0"
            )
        if self.order == "importance":
            for name, alone in (("granularity", "block"), ("block_reduce", "sum")):
                if getattr(self, name) != alone:
                    raise DyCokeError(
                        f"{name}={getattr(self, name)!r} has no effect with order='importance'; "
                        f"allowed there: {name}={alone!r}, or order='raster'"
                    )

    @classmethod
    def paper(cls) -> DyCokeConfig:
        """The paper's setting: K=0.7, L=3, P=0.7, its TTM, reuse of the selection."""
        return cls()

    @classmethod
    def reference(cls) -> DyCokeConfig:
        """The authors' released code: its TTM with all quirks, full attention on stable steps."""
        return cls(ttm="reference", gate="full")

    @classmethod
    def tuned(cls) -> DyCokeConfig:
        """The paper's rates with the selection that keeps most answers (docs/accuracy.md)."""
        return cls(gate="always", memory=0.5, order="importance")

    @classmethod
    def off(cls) -> DyCokeConfig:
        """No compression at all: every visual token in every layer and step."""
        return cls(k=0.0, p=0.0, ttm="off")

    @property
    def gate_mode(self) -> GateMode:
        return GateMode[self.gate.upper()]

    @property
    def scoring_layer(self) -> int:
        """0-based layer whose attention is scored: max(l-1, 0), as in the released code."""
        return max(self.l - 1, 0)

    def check_layers(self, num_layers: int) -> None:
        """Raises DyCokeError if `l` leaves no layer of a `num_layers`-layer model to prune."""
        if self.p > 0 and self.l >= num_layers:
            raise DyCokeError(
                f"l={self.l} leaves nothing to prune in a model of {num_layers} layers; "
                f"allowed: 0 <= l < {num_layers}, or p=0"
            )

    def with_changes(self, **changes: Any) -> DyCokeConfig:
        """A validated copy with some fields replaced; unknown names raise DyCokeError."""
        _refuse_unknown(changes)
        return replace(self, **changes)

    def __str__(self) -> str:
        """What matters of it in a line: `K=0.7 ttm paper; P=0.7 L=3 gate reuse, ...`."""
        merging = f"K={self.k} ttm {self.ttm}" if self.ttm != "off" and self.k > 0 else "no TTM"
        if self.p == 0:
            return f"{merging}; no pruning in decoding"
        chosen = "tokens"
        if self.granularity == "block":
            by = f" by {self.block_reduce}" if self.order == "raster" else ""
            chosen = f"blocks in {self.order} order{by}"
        return f"{merging}; P={self.p} L={self.l} gate {self.gate}, memory {self.memory}, {chosen}"

    def to_dict(self) -> dict[str, Any]:
        """Fields and values; a field younger than the first bundles only where it is not default.

        So what is exported with the defaults keeps the bytes, hence the identity, that it had.
        """
        return {
            name: value
            for name, value in asdict(self).items()
            if name not in _LATER_FIELDS or value != _LATER_FIELDS[name]
        }

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DyCokeConfig:
        """Inverse of `to_dict`; absent fields take their defaults, unknown ones are refused."""
        if not isinstance(values, Mapping):
            raise DyCokeError(f"DyCokeConfig: expected a mapping of fields, got {values!r}")
        _refuse_unknown(values)
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> DyCokeConfig:
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise DyCokeError(f"DyCokeConfig: not JSON ({error})") from None
        return cls.from_dict(values)

    @classmethod
    def from_authors_args(cls, args: Mapping[str, Any]) -> tuple[DyCokeConfig, dict[str, int]]:
        """Reads the argument names of the authors' code (dycoke_k, dycoke_l, dycoke_p).

        Returns the configuration (fields not given take the defaults) and those of the two layout
        values dycoke_num_tokens_per_frame and image_token_start_index that were given: they follow
        from the checkpoint and the prompt here, so the caller checks them instead of using them.
        """
        known = {*_AUTHORS_NAMES, *_AUTHORS_LAYOUT}
        for name in args:
            if name not in known:
                raise DyCokeError(f"unknown argument {name!r}; allowed: {', '.join(sorted(known))}")
        layout = {name: args[name] for name in _AUTHORS_LAYOUT if name in args}
        for name, value in layout.items():
            _integer(name, value, upper=None)
        return cls(**{_AUTHORS_NAMES[n]: v for n, v in args.items() if n in _AUTHORS_NAMES}), layout


# Fields younger than the first bundles, with their defaults.
_LATER_FIELDS = {
    field.name: field.default for field in fields(DyCokeConfig) if field.name in ("memory", "order")
}


def _refuse_unknown(values: Mapping[str, Any]) -> None:
    known = [field.name for field in fields(DyCokeConfig)]
    for name in values:
        if name not in known:
            raise DyCokeError(f"DyCokeConfig: unknown field {name!r}; allowed: {', '.join(known)}")


def _number(name: str, value: Any, *, upper_open: bool = False) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if (
        not is_number
        or not math.isfinite(value)
        or not 0 <= value <= 1
        or (upper_open and value == 1)
    ):
        bound = "<" if upper_open else "<="
        raise _refusal(name, value, f"a number, 0 <= {name} {bound} 1")
    return float(value)


def _integer(name: str, value: Any, *, upper: int | None) -> None:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    if not is_integer or value < 0 or (upper is not None and value > upper):
        limit = "" if upper is None else f" <= {upper}"
        raise _refusal(name, value, f"an integer, 0 <= {name}{limit}")


def _choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise _refusal(name, value, ", ".join(allowed))


def _refusal(name: str, value: Any, allowed: str) -> DyCokeError:
    return DyCokeError(f"{name}={value!r} is not allowed; allowed: {allowed}")
