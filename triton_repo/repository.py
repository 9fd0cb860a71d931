"""The model repository of a bundle: six models around one bundle directory.

preprocessing -> vision_ttm -> tensorrt_llm -> postprocessing is the ensemble `dycoke`;
`dycoke_bls` runs the same steps as one model. Every model.py is a shim into this package; with
engines of TensorRT, vision_ttm and tensorrt_llm are theirs (vision_config.py, trtllm.py), under the
same names; what a server has no C++ backend for it runs in Python: the plan on TensorRT's runtime,
tensorrt_llm on TensorRT-LLM's executor.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bundle.atomic import atomic_directory, is_empty_directory
from ..bundle.manifest import Manifest
from ..bundle.paths import engine_directory
from ..bundle.record import EngineRecord, open_build
from ..bundle.vision_record import read_vision_record
from ..bundle.writing import writing
from ..core.errors import DyCokeError
from ..runtime import protocol as p
from ..runtime.limits import RequestLimits
from ..runtime.video.limits import VideoLimits
from ..runtime.vision import RTX, TENSORRT
from .config_pbtxt import ModelConfig, Step
from .trtllm import CPP_BACKEND, llm_config
from .vision_config import AUTO, choose_vision, plan_config, vision_config

# Servers before this one refuse the field (it came with release 25.11).
MAX_INFLIGHT_SINCE = (2, 64)
MAX_INFLIGHT = 16
MARKER = ".dycoke-model-repository"


def write_repository(
    bundle: Path,
    target: Path,
    *,
    bundle_path: Path | None = None,
    triton_version: str = "2.51.0",
    build: str = "cpu",
    llm: str = CPP_BACKEND,
    vision: str = AUTO,
    vision_cuda_graph: bool = False,
    plan_backend: bool = False,
    threads: int = 0,
    limits: VideoLimits | None = None,
    requests: RequestLimits | None = None,
) -> Path:
    """Writes the repository `target` for what `dycoke build --target build` made of `bundle`.

    bundle_path: where the server will see the bundle, if elsewhere (a container's mount).
    triton_version: of the server, which refuses fields newer than itself. llm: what runs
    TensorRT-LLM engines, CPP_BACKEND or EXECUTOR. vision: what runs the vision step (one of
    runtime/vision.py, or AUTO); vision_cuda_graph: of RTX. plan_backend: the server has Triton's
    backend for TensorRT plans.
    threads: of the vision step on a CPU, 0 takes all cores. limits: of videos; requests: of all
    else that a request claims. A repository written earlier is replaced. Raises DyCokeError for a
    target that holds anything else, a bundle without that build, or a version that is none.
    """
    if threads and build != "cpu":
        raise DyCokeError(f"--threads {threads} has no effect with --target {build}")
    manifest, record = open_build(bundle, build)
    if record.backend == "native" and llm != CPP_BACKEND:
        raise DyCokeError(f"--llm {llm} has no effect with --target {build}")
    is_free = not target.exists() or is_empty_directory(target)
    if not is_free and not (target / MARKER).is_file():
        raise DyCokeError(f"{target} exists and is no model repository; choose another directory")
    bounds = requests or RequestLimits()
    cpp_llm = record.backend == "trtllm" and llm == CPP_BACKEND
    if cpp_llm and bounds.max_answer_seconds != RequestLimits.max_answer_seconds:
        raise DyCokeError(
            f"--max-answer-seconds {bounds.max_answer_seconds:g} has no effect with --llm {llm}"
        )
    seen = str(bundle_path or bundle.resolve())
    engines = engine_directory(Path(seen), build)  # there, too
    version_ = parse_version(triton_version)
    native = record.backend == "native"
    chosen = choose_vision(vision, build, native=native)
    if chosen == RTX:
        read_vision_record(bundle, manifest)
    configs = model_configs(
        manifest,
        record,
        version_,
        seen,
        build=build,
        limits=limits or VideoLimits(),
        requests=bounds,
    )
    if cpp_llm:
        configs = with_cpp_llm(configs, manifest, record, str(engines), bounds.max_queue)
    if chosen == TENSORRT and plan_backend:
        vision_ttm = plan_config(manifest)
    else:
        place = {"bundle": seen, "build": build, "threads": str(threads), **bounds.parameters()}
        vision_ttm = vision_config(
            manifest, place, chosen, gpu=cpp_llm, cuda_graph=vision_cuda_graph
        )
    configs.append(replace(vision_ttm, **_line(bounds, record)))
    with writing(target), atomic_directory(target, replace=True) as work:
        (work / MARKER).write_text(f"written by dycoke-trt for {seen}\n")
        for config in configs:
            version = work / config.name / "1"
            version.mkdir(parents=True)  # Triton wants the folder for ensembles too
            (work / config.name / "config.pbtxt").write_text(config.text())
            if config.file:
                # Seen by the server, which may be elsewhere: so it need not exist here.
                (version / config.file).symlink_to(engines / config.file)
            elif not config.steps and config.backend == "python":
                (version / "model.py").write_text(
                    "from dycoke_trt.triton_repo.models import alive\n"
                    f"from dycoke_trt.triton_repo.models import {config.name} as model\n\n"
                    "TritonPythonModel = alive.alive(model.TritonPythonModel)\n"
                )
    return target


def parse_version(text: str) -> tuple[int, ...]:
    """'2.51.0' -> (2, 51, 0). Raises DyCokeError for what is no server version."""
    try:
        version = tuple(int(part) for part in text.split("."))
    except ValueError:
        version = ()
    if not 2 <= len(version) <= 3:
        raise DyCokeError(f"Triton version {text!r} is not allowed; allowed: as in 2.51.0")
    return version


def _line(requests: RequestLimits, record: EngineRecord) -> dict[str, Any]:
    """The line before a step: it may fill a batch of the LLM step and the line there."""
    return {
        "max_queue": requests.max_queue + record.max_batch,
        "max_wait_seconds": requests.max_wait_seconds,
    }


def model_configs(
    manifest: Manifest,
    record: EngineRecord,
    triton: tuple[int, ...],
    bundle: str,
    *,
    build: str,
    limits: VideoLimits,
    requests: RequestLimits,
) -> list[ModelConfig]:
    """All models but the vision step. triton: the server's version; bundle: its path as the server
    sees it."""
    place = {"bundle": bundle}
    bounded = {**place, "build": build, **requests.parameters()}
    line = _line(requests, record)
    frames = p.frames_spec(manifest.vision.image_size)
    # The client shows visual tokens before and after TTM without having the bundle.
    shown = {
        "image_size": str(manifest.vision.image_size),
        "tokens_per_frame": str(manifest.vision.tokens_per_frame),
        "visual_tokens": json.dumps(
            {
                count: manifest.visual_tokens(count)
                for count in range(4, manifest.vision.max_frames + 1, 4)
            }
        ),
    }
    llm_inputs = p.llm_inputs(manifest.llm.hidden, manifest.vision.dtype)
    preprocessing = ModelConfig(
        p.PREPROCESSING,
        (*p.CLIENT_INPUTS, p.TEXT_ONLY, p.STOP),
        (frames, *p.PROMPT, p.PROMPT_VOCAB_SIZE),
        parameters={**bounded, **limits.parameters()},
        **line,
    )
    llm = ModelConfig(
        p.LLM,
        (*llm_inputs, p.ERRORS_AS_OUTPUT),
        (*p.LLM_OUTPUTS, p.ERROR),
        decoupled=True,
        parameters=bounded,
    )
    postprocessing = ModelConfig(
        p.POSTPROCESSING,
        (
            *p.TOKENS,
            *(spec._replace(optional=True) for spec in (*p.TOKEN_COUNTS, *p.STREAM_MARKS)),
        ),
        p.CLIENT_OUTPUTS,
        parameters=place,
    )
    bls = ModelConfig(
        p.BLS,
        p.CLIENT_INPUTS,
        p.CLIENT_OUTPUTS,
        decoupled=True,
        parameters={**bounded, **shown, p.ERRORS_AS_OUTPUT.name: "true"},
    )
    ensemble = ModelConfig(
        p.ENSEMBLE,
        p.CLIENT_INPUTS,
        p.CLIENT_OUTPUTS,
        decoupled=True,
        parameters=shown,
        steps=_ensemble_steps(),
        max_inflight=MAX_INFLIGHT if triton >= MAX_INFLIGHT_SINCE else 0,
    )
    return [preprocessing, llm, postprocessing, ensemble, bls]


def with_cpp_llm(
    configs: list[ModelConfig],
    manifest: Manifest,
    record: EngineRecord,
    engines: str,
    max_queue: int,
) -> list[ModelConfig]:
    """The same models, with `tensorrt_llm` on TensorRT-LLM's backend in C++, which marks neither
    begin nor end of a stream. engines: the engine directory as the server sees it; max_queue:
    requests that wait for its batch."""
    unmarked = [name.name for name in p.STREAM_MARKS]
    replaced = []
    for config in configs:
        if config.name == p.POSTPROCESSING:
            inputs = tuple(spec for spec in config.inputs if spec.name not in unmarked)
            # The backend in C++ publishes nothing of DyCoke: this model reads the plugins' files.
            parameters = {**config.parameters, "publish_counters": "true"}
            config = replace(config, inputs=inputs, parameters=parameters)
        elif config.steps:
            config = replace(config, steps=_ensemble_steps(marks=False))
        elif config.name == p.LLM:
            config = llm_config(manifest, record, engines, max_queue)
        elif config.name == p.BLS:
            no_output = {p.ERRORS_AS_OUTPUT.name: "false"}
            config = replace(config, parameters={**config.parameters, **no_output})
        replaced.append(config)
    return replaced


def _ensemble_steps(*, marks: bool = True) -> tuple[Step, ...]:
    """The data flow. What postprocessing takes must all come from the LLM step: the server refuses
    to combine tensors of a decoupled step with those of another."""

    def same(*specs: p.TensorSpec) -> dict[str, str]:
        return {spec.name: spec.name for spec in specs}

    prompt = {spec.name: f"_{spec.name}" for spec in (*p.PROMPT, p.PROMPT_VOCAB_SIZE)}
    answer = (*p.TOKENS, *p.TOKEN_COUNTS, *(p.STREAM_MARKS if marks else ()))
    tokens = {spec.name: f"_{spec.name}" for spec in answer}
    return (
        Step(p.PREPROCESSING, same(*p.CLIENT_INPUTS), {"frames": "_frames", **prompt}),
        Step(p.VISION, {"frames": "_frames"}, {"visual_embeds": "_visual_embeds"}),
        Step(
            p.LLM,
            {
                **prompt,
                p.PROMPT_TABLE: "_visual_embeds",
                **{spec.name: name for name, spec in p.ANSWER_INPUTS.items()},
            },
            tokens,
        ),
        Step(p.POSTPROCESSING, tokens, same(*p.CLIENT_OUTPUTS)),
    )
