"""Images made without a GPU: what the manifest says is what is in the images, byte for byte again.

The full grid (every target, dtype and block size) is `make kernel-grid`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.core.dtype import Dtype
from dycoke_trt.core.errors import DyCokeError
from dycoke_trt.kernels.aot import TARGETS, check_targets, ptx_parameter_sizes, write_images
from dycoke_trt.kernels.images import KernelShape, Variant, native_variants, plugin_variants
from dycoke_trt.tests.support import assert_one_line, demo_bundle, dycoke

ELF_HEADER, SECTION_HEADER = 64, 64
KPARAM_INFO, REQNTID = 0x17, 0x10  # attributes of .nv.info: a parameter; the block's threads
SMALL = KernelShape(4, 2, 32, Dtype.FP32)


def kernel_info(cubin: bytes, entry: str) -> tuple[list[int], int]:
    """(bytes of each parameter in order, threads of a block) from the ELF's .nv.info.<entry>."""
    offset, size, count, names = struct.unpack_from("<40xQ10xHHH", cubin)
    sections = [struct.unpack_from("<IIQQQQ", cubin, offset + i * size) for i in range(count)]
    strings = sections[names][4]

    def name(start: int) -> str:
        return cubin[strings + start : cubin.index(b"\0", strings + start)].decode()

    (info,) = [s for s in sections if name(s[0]) == f".nv.info.{entry}"]
    place, end = info[4], info[4] + info[5]
    sizes, threads = {}, 0
    while place < end:
        form, attribute, value = struct.unpack_from("<BBH", cubin, place)
        place += 4
        if form != 4:  # the value is in the header
            continue
        if attribute == KPARAM_INFO:
            _, ordinal, _, packed = struct.unpack_from("<IHHI", cubin, place)
            sizes[ordinal] = packed >> 18
        elif attribute == REQNTID:
            (threads,) = struct.unpack_from("<I", cubin, place)
        place += value
    return [sizes[i] for i in range(len(sizes))], threads


def check_image(directory: Path, image: dict[str, Any]) -> None:
    data = (directory / image["file"]).read_bytes()
    assert len(data) == image["size"]
    assert hashlib.sha256(data).hexdigest() == image["sha256"]
    expected = [p["bytes"] for p in image["parameters"]] + [8] * image["hidden_parameters"]
    if image["target"] == "ptx":
        text = data.decode()
        assert ".version 8.0" in text
        assert re.search(r"^\.target sm_80$", text, re.MULTILINE)
        assert f".entry {image['entry']}(" in text
        assert ptx_parameter_sizes(text) == expected
        (threads,) = re.findall(r"\.reqntid (\d+)", text)
    else:
        sizes, threads = kernel_info(data, image["entry"])
        assert sizes == expected
    assert int(threads) == 32 * image["warps"]
    assert len(image["grid"]) == 3
    assert str(Path(__file__).parents[2]).encode() not in data  # no path of this machine


def test_manifest_matches_images_and_bytes_come_again(tmp_path: Path) -> None:
    bundle = demo_bundle(DyCokeConfig())
    texts = []
    for name in ("one", "another"):
        out = tmp_path / name
        done = dycoke(
            "kernels", bundle, "--target", "sm_90,ptx", "--tokens-per-block", "32", "-o", out
        )
        assert done.returncode == 0, done.stderr
        manifest = json.loads((out / "manifest.json").read_text())
        for image in manifest["images"]:
            check_image(out, image)
        files = {image["file"] for image in manifest["images"]} | {"manifest.json"}
        assert {path.name for path in out.iterdir()} == files
        texts.append((out / "manifest.json").read_text())
    assert texts[0] == texts[1]  # sha256 of every image among it
    assert manifest["shape"] == {
        "heads": 4, "kv_heads": 2, "head_dim": 32, "dtype": "float32", "ranks": 1
    }  # fmt: skip
    names = {image["name"] for image in manifest["images"]}
    assert names == {"rotary", "context_b32", "logits_b32", "select_b32", "reorder_b32"}
    select = next(i for i in manifest["images"] if i["name"] == "select_b32")
    assert [p["name"] for p in select["parameters"]][:4] == ["scores", "maxima", "sums", "table"]


def test_several_ranks_sum_their_scores() -> None:
    variants = list(plugin_variants(KernelShape(14, 2, 128, Dtype.BF16, ranks=2), (64,)))
    assert [v.name for v in variants] == [
        "rotary", "scores", "context_b64", "logits_b64", "select_b64", "reorder_b64"
    ]  # fmt: skip
    assert not variants[-2].constants["FUSED"]


def test_every_kernel_of_the_native_backend_compiles(tmp_path: Path) -> None:
    shape = KernelShape(14, 2, 64, Dtype.BF16)
    manifest = write_images(tmp_path, shape, native_variants(shape, 32, 896, 4864), ["sm_90"])
    for image in manifest["images"]:
        check_image(tmp_path, image)


def test_targets() -> None:
    assert check_targets(["ptx", "sm_80", "ptx"]) == ("sm_80", "ptx")
    for wrong in (["sm_75"], []):
        with pytest.raises(DyCokeError, match="allowed: sm_80, sm_86, sm_89, sm_90, sm_100, ptx"):
            check_targets(wrong)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (("--target", "sm_70"), ("sm_70", "allowed: sm_80")),
        (("--target", "ptx", "--tokens-per-block", "24"), ("24", "allowed: 16, 32, 64, 128")),
        (("--tokens-per-block", "x"), ("'x'", "allowed: 16")),
    ],
)
def test_refusals(tmp_path: Path, args: tuple[str, ...], parts: tuple[str, ...]) -> None:
    bundle = demo_bundle(DyCokeConfig())
    out = tmp_path / "images"
    assert_one_line(dycoke("kernels", bundle, "-o", out, *args), *parts)
    assert not out.exists()


SHAPES = ((14, 2, 64), (28, 4, 128), (32, 4, 128))  # 0.5B; 7B; 72B on two ranks
GRID_CASES = list(product(SHAPES, Dtype, (1, 2)))


def grid() -> dict[Any, list[Variant]]:
    """Every kernel once, at the first case that needs it: many do not depend on dtype or heads."""
    found: dict[Any, list[Variant]] = {case: [] for case in GRID_CASES}
    seen = set()
    for heads, dtype, ranks in GRID_CASES:
        shape = KernelShape(*heads, dtype, ranks)
        variants = [*plugin_variants(shape, (16, 32, 64, 128))]
        if ranks == 1:
            for block in (8, 64):
                variants += native_variants(shape, block, 3584, 18_944)
        for variant in variants:
            types = tuple(parameter.type for parameter in variant.parameters(dtype))
            constants = tuple(sorted(variant.constants.items()))
            code = (variant.kernel.__name__, constants, variant.warps, variant.stages, types)
            if code not in seen:
                seen.add(code)
                found[heads, dtype, ranks].append(variant)
    return found


@pytest.mark.skipif("DYCOKE_KERNEL_GRID" not in os.environ, reason="minutes: make kernel-grid")
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", GRID_CASES, ids=str)
def test_grid(tmp_path: Path, case: tuple[tuple[int, int, int], Dtype, int], target: str) -> None:
    heads, dtype, ranks = case
    shape = KernelShape(*heads, dtype, ranks)
    manifest = write_images(tmp_path, shape, grid()[case], [target])
    for image in manifest["images"]:
        check_image(tmp_path, image)
        # What a block may have at most, by opt-in: 99 KiB on sm_86 and sm_89.
        assert image["shared_bytes"] <= (99 << 10 if target in ("sm_86", "sm_89") else 163 << 10)
