import dataclasses
import math

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.errors import DyCokeError
from hypothesis import given
from hypothesis import strategies as st

configs = st.builds(
    DyCokeConfig,
    k=st.floats(0, 1, exclude_max=True),
    l=st.integers(0, 200),
    p=st.floats(0, 1, exclude_max=True),
    ttm=st.sampled_from(["paper", "reference", "random", "off"]),
    gate=st.sampled_from(["reuse", "full", "always", "once"]),
    gate_threshold=st.floats(0, 1),
    granularity=st.sampled_from(["block", "token"]),
    block_reduce=st.sampled_from(["sum", "max"]),
    seed=st.integers(0, 2**63 - 1),
)


@given(configs)
def test_round_trip_through_json(config: DyCokeConfig) -> None:
    assert DyCokeConfig.from_json(config.to_json()) == config
    assert DyCokeConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("k", -0.1, "0 <= k < 1"),
        ("k", 1.0, "0 <= k < 1"),
        ("k", math.nan, "0 <= k < 1"),
        ("k", "0.7", "0 <= k < 1"),
        ("k", True, "0 <= k < 1"),
        ("p", 1, "0 <= p < 1"),
        ("p", math.inf, "0 <= p < 1"),
        ("p", None, "0 <= p < 1"),
        ("l", -1, "0 <= l"),
        ("l", 2.0, "an integer"),
        ("l", False, "an integer"),
        ("gate_threshold", 1.01, "0 <= gate_threshold <= 1"),
        ("gate_threshold", -0.01, "0 <= gate_threshold <= 1"),
        ("ttm", "Paper", "paper, reference, random, off"),
        ("gate", "", "reuse, full, always, once"),
        ("granularity", "page", "block, token"),
        ("block_reduce", "mean", "sum, max"),
        ("seed", -1, "0 <= seed"),
        ("seed", 2**63, "0 <= seed"),
        ("seed", 0.0, "an integer"),
    ],
)
def test_invalid_values_are_refused_by_name(field: str, value: object, allowed: str) -> None:
    with pytest.raises(DyCokeError) as error:
        DyCokeConfig.from_dict({field: value})
    message = str(error.value)
    assert message.startswith(f"{field}={value!r}")
    assert allowed in message
    assert "\n" not in message


def test_every_field_has_a_refused_value() -> None:
    for field in dataclasses.fields(DyCokeConfig):
        with pytest.raises(DyCokeError, match=field.name):
            DyCokeConfig.from_dict({field.name: object()})


def test_unknown_keys_are_refused() -> None:
    with pytest.raises(DyCokeError, match=r"unknown field 'K'.*allowed: k, l, p"):
        DyCokeConfig.from_dict({"K": 0.5})
    with pytest.raises(DyCokeError, match="unknown field"):
        DyCokeConfig().with_changes(tau=0.9)
    with pytest.raises(DyCokeError, match="not JSON"):
        DyCokeConfig.from_json("{k: 1}")
    with pytest.raises(DyCokeError, match="mapping"):
        DyCokeConfig.from_json("[0.7]")


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DyCokeConfig().k = 0.1


def test_presets() -> None:
    paper = DyCokeConfig.paper()
    assert (paper.k, paper.l, paper.p, paper.ttm, paper.gate) == (0.7, 3, 0.7, "paper", "reuse")
    assert (DyCokeConfig.reference().ttm, DyCokeConfig.reference().gate) == ("reference", "full")
    assert (DyCokeConfig.off().p, DyCokeConfig.off().ttm) == (0.0, "off")


@pytest.mark.parametrize(("l", "layer"), [(0, 0), (1, 0), (3, 2)])
def test_scoring_layer(l: int, layer: int) -> None:
    assert DyCokeConfig(l=l).scoring_layer == layer


def test_l_must_leave_a_layer_to_prune() -> None:
    DyCokeConfig(l=5).check_layers(6)
    DyCokeConfig(l=6, p=0.0).check_layers(6)
    with pytest.raises(DyCokeError, match=r"l=6 .* 6 layers; allowed: 0 <= l < 6"):
        DyCokeConfig(l=6).check_layers(6)


def test_authors_names() -> None:
    config, layout = DyCokeConfig.from_authors_args(
        {"dycoke_k": 0.5, "dycoke_l": 2, "dycoke_p": 0.8, "image_token_start_index": 14}
    )
    assert (config.k, config.l, config.p) == (0.5, 2, 0.8)
    assert layout == {"image_token_start_index": 14}
    with pytest.raises(DyCokeError, match="dycoke_num_image_per_frame"):
        DyCokeConfig.from_authors_args({"dycoke_num_image_per_frame": 196})
    with pytest.raises(DyCokeError, match="dycoke_num_tokens_per_frame='x'"):
        DyCokeConfig.from_authors_args({"dycoke_num_tokens_per_frame": "x"})


def test_younger_fields_leave_what_is_written_by_default_as_it_was() -> None:
    assert not {"memory", "order"} & set(DyCokeConfig().to_dict())
    config = DyCokeConfig(memory=0.5, order="importance")
    assert DyCokeConfig.from_dict(config.to_dict()) == config
    assert DyCokeConfig.from_json(config.to_json()) == config


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("memory", 1.0, "0 <= memory < 1"),
        ("memory", -0.1, "0 <= memory < 1"),
        ("order", "random", "raster, importance"),
    ],
)
def test_memory_and_order_are_validated(name: str, value: object, allowed: str) -> None:
    with pytest.raises(DyCokeError, match=f"{name}={value!r}.*{allowed}"):
        DyCokeConfig.from_dict({name: value})


def test_memory_is_of_no_use_where_the_first_step_alone_selects() -> None:
    with pytest.raises(DyCokeError, match=r"memory=0.5 has no effect with gate='once'"):
        DyCokeConfig(gate="once", memory=0.5)


@pytest.mark.parametrize("change", [{"granularity": "token"}, {"block_reduce": "max"}])
def test_what_an_order_of_importance_leaves_without_effect(change: dict[str, str]) -> None:
    ((name, value),) = change.items()
    with pytest.raises(DyCokeError, match=f"{name}='{value}' has no effect with order='imp"):
        DyCokeConfig(order="importance", **change)


def test_presets_differ_in_selection_alone() -> None:
    paper, tuned = DyCokeConfig.paper(), DyCokeConfig.tuned()
    assert paper == DyCokeConfig()
    changed = {
        name for name, value in tuned.to_dict().items() if paper.to_dict().get(name) != value
    }
    assert changed == {"gate", "memory", "order"}


def test_a_line_says_what_runs() -> None:
    assert str(DyCokeConfig.tuned()) == (
        "K=0.7 ttm paper; P=0.7 L=3 gate always, memory 0.5, blocks in importance order"
    )
    assert str(DyCokeConfig(ttm="off", block_reduce="max")).startswith("no TTM; P=0.7")
    assert str(DyCokeConfig(block_reduce="max")).endswith("blocks in raster order by max")
    assert str(DyCokeConfig(p=0.0)) == "K=0.7 ttm paper; no pruning in decoding"
