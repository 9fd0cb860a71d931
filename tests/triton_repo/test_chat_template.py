"""The published chat template through export, server and ask: the same ids everywhere."""

from __future__ import annotations

from pathlib import Path

import tritonclient.grpc as grpc
from dycoke_trt.bench.make_checkpoint import CHAT_TEMPLATE as PUBLISHED
from dycoke_trt.bundle.files import open_bundle
from dycoke_trt.core.config import DyCokeConfig
from dycoke_trt.demo import CLIPS_DIR
from dycoke_trt.engines.cpu import build_cpu
from dycoke_trt.export.bundle import export_bundle
from dycoke_trt.runtime.pipeline import Pipeline
from dycoke_trt.runtime.prompt import PromptBuilder
from dycoke_trt.runtime.protocol import ENSEMBLE, PREPROCESSING
from dycoke_trt.tests.export.chats import QUESTION, model_without_template, transformers_ids
from dycoke_trt.tests.triton_repo.conftest import SERVER_ENVIRONMENT
from dycoke_trt.tests.triton_repo.streams import ask, tensor
from dycoke_trt.triton_repo.launcher import serving
from dycoke_trt.triton_repo.repository import write_repository


def test_the_published_form_through_export_server_and_ask(tmp_path: Path) -> None:
    model = model_without_template(tmp_path)
    (model / "chat_template.jinja").write_text(PUBLISHED)
    bundle, clip = tmp_path / "bundle", CLIPS_DIR / "describe.mp4"
    config = DyCokeConfig()
    manifest = export_bundle(model, bundle, config, dtype="float32", max_frames=8)
    visual = manifest.visual_tokens(8)
    wanted = transformers_ids(model, PUBLISHED, visual, manifest.visual_token_base)
    assert manifest.template.span_start == wanted.index(manifest.visual_token_base)
    assert PromptBuilder(bundle, open_bundle(bundle)).build(QUESTION, visual) == wanted
    build_cpu(bundle, kv_tokens=1_024, tokens_per_block=8, max_batch=1)
    pipeline = Pipeline.from_record(bundle)
    answer = pipeline.ask(pipeline.read(clip, 8), QUESTION, max_tokens=2)
    assert answer.input_tokens == len(wanted)
    repository = write_repository(bundle, tmp_path / "repository", threads=1)
    with serving(repository, environment=SERVER_ENVIRONMENT) as server:
        given = {"text_input": QUESTION, "video_file_input": clip.read_bytes(), "num_frames": 8}
        tensors = [tensor(name, value) for name, value in given.items()]
        with grpc.InferenceServerClient(server.grpc) as client:
            prompt = client.infer(PREPROCESSING, tensors, request_id="published")
        assert prompt.as_numpy("input_ids").tolist() == [wanted]
        options = {"max_tokens": 2, "return_num_input_tokens": True}
        reply = ask(server.grpc, ENSEMBLE, given | options)
        assert (reply.text, reply.input_tokens) == (answer.text, len(wanted))
