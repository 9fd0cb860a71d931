"""The vision module: its two attentions, pooling, and weights that take no memory."""

import pytest
import torch
from dycoke_trt.arch.siglip import (
    VisionModel,
    fused_attention,
    pooling_matrix,
    softmax_attention,
    stage_names,
    weight,
)
from dycoke_trt.arch.spec import PixelScale, TowerSpec, VisionSpec
from dycoke_trt.compress.keep_all import KeepAll
from dycoke_trt.compress.ttm import Ttm

TOWER = TowerSpec(  # 1 pixel is no whole patch
    2, 32, 48, 8, 5, heads=2, image_size=41, layer_norm_eps=1e-6, tanh_gelu=True
)


@pytest.mark.parametrize("side", [1, 2, 5, 7, 27])
def test_pooling_is_bilinear_to_half_the_side(side: int) -> None:
    pooled = (side + 1) // 2
    x = torch.randn(2, side * side, 5)
    image = x.view(2, side, side, 5).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(image, size=[pooled, pooled], mode="bilinear")
    found = pooling_matrix(side) @ x
    torch.testing.assert_close(found, want.permute(0, 2, 3, 1).flatten(1, 2), rtol=0, atol=1e-6)


def test_fused_attention_is_the_softmax() -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 8)
    torch.testing.assert_close(
        fused_attention(query, key, value, 0.3), softmax_attention(query, key, value, 0.3)
    )


def test_a_weight_that_is_not_loaded_takes_no_memory() -> None:
    assert weight(10_000, 10_000, dtype=torch.bfloat16).untyped_storage().nbytes() == 2


def model(k: float) -> VisionModel:
    spec = VisionSpec(TOWER, 24, PixelScale(), Ttm(9, k) if k else KeepAll(9), "one_token")
    made = VisionModel(spec, torch.float32)
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(parameter.shape, generator=generator) * parameter.shape[0] ** -0.5
        for name, parameter in made.named_parameters()
    }
    made.load_state_dict(weights, assign=True)
    return made


@pytest.mark.parametrize(("k", "survive"), [(0, 72), (0.95, 18), (0.5, 42)])
def test_stages_have_their_shapes_and_names(k: float, survive: int) -> None:
    frames = torch.randint(0, 256, (3, 8, 3, 41, 41), dtype=torch.uint8)
    made = model(k)
    stages = made.stages(frames)
    assert list(stages.named()) == stage_names(2)
    shapes = [list(value.shape) for value in stages.named().values()]
    assert shapes == [[24, 25, 32]] * 3 + [[24, 25, 24], [24, 9, 24]]
    assert stages.rows.shape == (3, survive)
    assert torch.equal(stages.visual_embeds[:, -1], made.image_newline.expand(3, -1))
    video = stages.pooled.view(3, 72, 24)
    for b in range(3):
        assert torch.equal(stages.visual_embeds[b, :-1], video[b, stages.rows[b]])
    assert torch.equal(made.features(frames.flatten(0, 1)), stages.pooled)


def test_pixels_beyond_the_last_whole_patch_do_not_count() -> None:
    frames = torch.randint(0, 256, (1, 4, 3, 41, 41), dtype=torch.uint8)
    other = frames.clone()
    other[..., 40] = 0
    made = model(0.5)
    assert torch.equal(made(frames), made(other))
