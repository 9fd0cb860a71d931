"""config.pbtxt of one model, from a description of it.

Field names are those of Triton's model_config.proto. The text is written here and not with protobuf
classes: only clients install those, and people read these files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from ..runtime.protocol import TensorSpec


@dataclass(frozen=True)
class Step:
    """One model of an ensemble. inputs, outputs: {its tensor: the ensemble's tensor}."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


@dataclass(frozen=True)
class ModelConfig:
    """A model of the repository; `steps` makes it an ensemble.

    decoupled: sends any number of responses per request. max_inflight: how many responses of a
    decoupled step an ensemble may hold per request (0: not written, older servers refuse it).
    platform: instead of a backend. file: of the version folder, instead of the backend's default.
    profiles: of a TensorRT plan, which then runs on GPU 0. ragged: requests of different lengths
    form one batch, and scalars have no dimension but the batch's: backend tensorrtllm.
    queue_microseconds: how long a request may wait for others; None batches nothing. max_queue:
    requests that wait, more are refused; max_wait_seconds: those that waited so long are refused
    too. 0 bounds nothing.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    backend: str = "python"
    decoupled: bool = False
    instances: int = 1
    parameters: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    max_inflight: int = 0
    platform: str = ""
    file: str = ""
    profiles: tuple[str, ...] = ()
    max_batch: int = 1
    ragged: bool = False
    queue_microseconds: int | None = None
    max_queue: int = 0
    max_wait_seconds: float = 0.0

    def text(self) -> str:
        """The whole config.pbtxt."""
        lines = [f'name: "{self.name}"']
        platform = "ensemble" if self.steps else self.platform
        lines.append(f'platform: "{platform}"' if platform else f'backend: "{self.backend}"')
        if self.file:
            lines.append(f'default_model_filename: "{self.file}"')
        lines.append(f"max_batch_size: {self.max_batch}")
        if self.decoupled:
            lines.append("model_transaction_policy { decoupled: true }")
        if queue := self._queue():
            lines.append(f"dynamic_batching {{ {' '.join(queue)} }}")
        lines += [_tensor("input", spec, ragged=self.ragged) for spec in self.inputs]
        lines += [_tensor("output", spec) for spec in self.outputs]
        lines += [
            f"parameters {{ key: {_quote(key)} value {{ string_value: {_quote(value)} }} }}"
            for key, value in self.parameters.items()
        ]
        if self.steps:
            lines += ["ensemble_scheduling {"]
            if self.max_inflight:
                lines.append(f"  max_inflight_requests: {self.max_inflight}")
            lines += [line for step in self.steps for line in _step(step)]
            lines += ["}"]
        elif self.profiles:
            names = ", ".join(f'"{name}"' for name in self.profiles)
            lines.append(
                f"instance_group [ {{ count: {self.instances} kind: KIND_GPU gpus: [ 0 ] "
                f"profile: [ {names} ] }} ]"
            )
        else:
            lines.append(f"instance_group [ {{ count: {self.instances} kind: KIND_CPU }} ]")
        return "\n".join(lines) + "\n"

    def _queue(self) -> list[str]:
        """Fields of the server's batcher, the only line of it that can be bounded."""
        queue = []
        if self.queue_microseconds is not None:
            queue.append(f"max_queue_delay_microseconds: {self.queue_microseconds}")
        policy = []
        if self.max_queue:
            policy.append(f"max_queue_size: {self.max_queue}")
        if self.max_wait_seconds:
            microseconds = round(self.max_wait_seconds * 1e6)
            policy.append(f"timeout_action: REJECT default_timeout_microseconds: {microseconds}")
        if policy:
            queue.append(f"default_queue_policy {{ {' '.join(policy)} }}")
        return queue


def _tensor(kind: str, spec: TensorSpec, *, ragged: bool = False) -> str:
    dtype = "TYPE_STRING" if spec.dtype == "BYTES" else f"TYPE_{spec.dtype}"
    dims = ", ".join(map(str, spec.shape))
    is_optional = " optional: true" if spec.optional and kind == "input" else ""
    scalar = " reshape: { shape: [ ] }" if spec.shape == (1,) else " allow_ragged_batch: true"
    extra = is_optional + (scalar if ragged else "")
    return f'{kind} [ {{ name: "{spec.name}" data_type: {dtype} dims: [ {dims} ]{extra} }} ]'


def _step(step: Step) -> Iterable[str]:
    yield f'  step [ {{ model_name: "{step.model}" model_version: -1'
    for kind, names in (("input_map", step.inputs), ("output_map", step.outputs)):
        yield from (f'    {kind} {{ key: "{key}" value: "{name}" }}' for key, name in names.items())
    yield "  } ]"


def _quote(text: str) -> str:
    """A string literal of protobuf's text format; JSON's escapes are valid there for ASCII."""
    return json.dumps(text, ensure_ascii=False)
