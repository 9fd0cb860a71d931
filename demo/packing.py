"""Many questions about one video in one sequence.

The visual prefix is most of a sequence. Here it is computed once per video, and its questions
follow one after the other: each sees the prefix and itself only, at the positions it would have
alone. The loss is that of separate sequences at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .shapes import Question, Task
from .tokenizer import END, prompt_prefix, prompt_suffix

if TYPE_CHECKING:
    from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase

ATTENTION = "packed_questions"  # the attention implementation registered below
_CHUNK = 320  # rows of attention at a time
_PADDING = -1
_PREFIX = 0


@dataclass(frozen=True)
class Encoded:
    """One question: its ids and which of them are the answer (`<|im_end|>` included)."""

    task: Task
    ids: list[int]
    answer_from: int


class Packer:
    """Turns features and questions into the language model's inputs."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._prefix: list[int] = tokenizer(prompt_prefix())["input_ids"]

    def encode(self, asked: Question) -> Encoded:
        prompt: list[int] = self._tokenizer(prompt_suffix(asked.question))["input_ids"]
        answer: list[int] = self._tokenizer(asked.answer + END)["input_ids"]
        return Encoded(asked.task, prompt + answer, len(prompt))

    def answers(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        visual: Tensor,
        asked: list[list[Encoded]],
    ) -> Answers:
        """Runs the language model, inside `packed_attention`; visual: [B, M, D], no newline."""
        inner = model.model
        videos = visual.shape[0]
        prefix = len(self._prefix) + visual.shape[1] + 1
        length = max(sum(len(q.ids) for q in row) for row in asked)
        ids = torch.zeros(videos, length, dtype=torch.long)
        segment = torch.full((videos, prefix + length), _PADDING)
        segment[:, :prefix] = _PREFIX
        position = torch.arange(prefix + length).repeat(videos, 1)
        where: list[tuple[int, int]] = []  # (video, row that predicts an answer's token)
        targets: list[int] = []
        question_of: list[int] = []
        tasks: list[Task] = []
        for video, row in enumerate(asked):
            at = 0
            for number, question in enumerate(row, start=1):
                end = at + len(question.ids)
                ids[video, at:end] = torch.tensor(question.ids)
                segment[video, prefix + at : prefix + end] = number
                position[video, prefix + at : prefix + end] = prefix + torch.arange(end - at)
                for i in range(question.answer_from, len(question.ids)):
                    where.append((video, prefix + at + i - 1))
                    targets.append(question.ids[i])
                    question_of.append(len(tasks))
                tasks.append(question.task)
                at = end
        embed = inner.language_model.get_input_embeddings()
        before = embed(torch.tensor(self._prefix)).expand(videos, -1, -1)
        newline = inner.image_newline.expand(videos, 1, -1)
        hidden = inner.language_model(
            inputs_embeds=torch.cat([before, visual, newline, embed(ids)], dim=1),
            attention_mask=_mask(segment),
            position_ids=position,
            use_cache=False,
        ).last_hidden_state
        rows, columns = torch.tensor(where).T
        logits = model.lm_head(hidden[rows, columns]).float()
        return Answers(logits, torch.tensor(targets), torch.tensor(question_of), tasks)


@dataclass(frozen=True)
class Answers:
    """Predictions for every answer token of a batch.

    logits [n, vocabulary], targets [n], question_of [n]: which question a token answers;
    tasks: the task of each question.
    """

    logits: Tensor
    targets: Tensor
    question_of: Tensor
    tasks: list[Task]

    def loss(self, *, balanced: bool) -> Tensor:
        """Cross entropy, mean over tokens; balanced: half of it the mean over questions instead.

        Two thirds of all answer tokens belong to descriptions, so a mean over tokens hardly
        notices a short answer that is wrong.
        """
        losses = nn.functional.cross_entropy(self.logits, self.targets, reduction="none")
        if not balanced:
            return losses.mean()
        lengths = torch.bincount(self.question_of, minlength=len(self.tasks))
        by_question = (losses / lengths[self.question_of]).sum() / len(self.tasks)
        return (losses.mean() + by_question) / 2

    def right(self) -> Tensor:
        """bool [questions]: every answer token is the most likely one given those before it.

        For a whole answer that is the same as greedy generation giving exactly this answer.
        """
        hit = (self.logits.argmax(-1) == self.targets).long()
        return (
            torch.ones(len(self.tasks)).scatter_reduce(0, self.question_of, hit.float(), "amin") > 0
        )


@contextmanager
def packed_attention(model: LlavaOnevisionForConditionalGeneration) -> Iterator[None]:
    """While it lasts, the language model's attention takes the masks of `Packer.answers`."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)  # hands a 4D mask through as it is
    config = model.model.language_model.config
    before = config._attn_implementation
    config._attn_implementation = ATTENTION
    try:
        yield
    finally:
        config._attn_implementation = before


def _attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    **_: object,
) -> tuple[Tensor, None]:
    """query [B, H, T, D], key and value [B, Hkv, T, D], mask as `_mask` makes it -> [B, T, H, D].

    Attention spelled out, a video and a chunk of rows at a time: the scores stay in the cache,
    keys after the chunk are skipped, and the products run in bf16 matrix units. On a CPU forward
    and backward take 0.4 of the time of the fused kernel with a mask.
    """
    groups = query.shape[1] // key.shape[1]
    outputs = []
    for q, k, v, mask in zip(query, key, value, attention_mask, strict=True):
        k, v = k.repeat_interleave(groups, 0).transpose(1, 2), v.repeat_interleave(groups, 0)
        mask = mask.to(q.dtype)
        rows = []
        for start in range(0, q.shape[1], _CHUNK):
            end = min(start + _CHUNK, q.shape[1])
            scores = torch.baddbmm(
                mask[:, start:end, :end], q[:, start:end], k[:, :, :end], alpha=scaling
            )
            rows.append(torch.bmm(scores.softmax(-1), v[:, :end]))
        outputs.append(torch.cat(rows, dim=1))
    return torch.stack(outputs).transpose(1, 2), None


def _mask(segment: Tensor) -> Tensor:
    """Additive [B, 1, T, T], 0 or -inf: causal, to the prefix and to one's own segment."""
    mine, other = segment[:, :, None], segment[:, None, :]
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    allowed = causal & ((other == _PREFIX) | (other == mine))
    # bf16 holds both values exactly, and it is what the scores are computed in.
    return torch.zeros(allowed.shape, dtype=torch.bfloat16).masked_fill(~allowed, -torch.inf)[
        :, None
    ]
