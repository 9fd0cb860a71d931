"""One set of tensor names for all source formats, and the shapes that each name must have.

Canonical names: `llm.embed_tokens.weight`, `llm.layers.{i}.self_attn.q_proj.weight`, ...,
`llm.norm.weight`, `llm.lm_head.weight`, `vision.embeddings.patch_embedding.weight`,
`vision.encoder.layers.{i}...`, `projector.linear_1.weight`, `image_newline`.

Sources: transformers 4 (`language_model.model.layers`, `vision_tower.vision_model`,
`multi_modal_projector`), transformers 5 in memory (`model.language_model.layers`,
`model.vision_tower`) and as 5.23 saves it (as transformers 4, without `vision_model`), the original
LLaVA-NeXT format (`model.layers`, `model.vision_tower.vision_tower.vision_model`,
`model.mm_projector.0`), bare Qwen2, bare SigLIP.
"""

from __future__ import annotations

import re

from ..cost.dims import LlmDims, VisionDims

# How names of Hugging Face's checkpoints begin, as transformers 4 has them.
_HUB_NAMES = {
    "llm.lm_head.": "language_model.lm_head.",
    "llm.": "language_model.model.",
    "vision.": "vision_tower.vision_model.",
    "projector.": "multi_modal_projector.",
}
_RULES = [
    (re.compile(pattern), canonical)
    for pattern, canonical in (
        (r"^(?:model\.)?language_model\.lm_head\.", "llm.lm_head."),
        (r"^lm_head\.", "llm.lm_head."),
        (r"^(?:model\.)?language_model\.(?:model\.)?(?=embed_tokens\.|layers\.|norm\.)", "llm."),
        (r"^model\.(?=embed_tokens\.|layers\.|norm\.)", "llm."),
        (r"^(?:model\.)?vision_tower\.(?:vision_tower\.)?(?:vision_model\.)?", "vision."),
        (r"^(?:vision_model\.)?(?=embeddings\.|encoder\.|post_layernorm\.|head\.)", "vision."),
        (r"^(?:model\.)?multi_modal_projector\.", "projector."),
        (r"^model\.mm_projector\.0\.", "projector.linear_1."),
        (r"^model\.mm_projector\.2\.", "projector.linear_2."),
        (r"^(?:model\.)?image_newline$", "image_newline"),
    )
]
# Present in some checkpoints, read by nothing: buffers, SigLIP's head and its text half.
_UNUSED = re.compile(
    r"rotary_emb\.inv_freq$|position_ids$|^vision\.(head|post_layernorm)\."
    r"|^text_model\.|^logit_(scale|bias)$"
)


def canonical_name(source: str) -> str | None:
    """The canonical name of a source tensor; None for one that nothing reads.

    Names that no rule knows come back unchanged, so that the caller can refuse them by name.
    """
    for pattern, canonical in _RULES:
        if match := pattern.match(source):
            source = canonical + source[match.end() :]
            break
    return None if _UNUSED.search(source) else source


def hub_name(name: str) -> str:
    """A canonical name as Hugging Face's checkpoints spell it."""
    for ours, theirs in _HUB_NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def layer_index(name: str) -> int:
    """The layer number in a canonical name; -1 where there is none."""
    match = re.search(r"\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def llm_shapes(dims: LlmDims) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of Qwen2; without lm_head, which tied checkpoints leave out."""
    d, m, q, kv = dims.hidden, dims.intermediate, dims.heads, dims.kv_heads
    shapes: dict[str, tuple[int, ...]] = {"llm.embed_tokens.weight": (dims.vocab, d)}
    for i in range(dims.layers):
        layer = f"llm.layers.{i}."
        for part, heads in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{layer}self_attn.{part}_proj.weight"] = (heads * dims.head_dim, d)
            shapes[f"{layer}self_attn.{part}_proj.bias"] = (heads * dims.head_dim,)
        shapes[f"{layer}self_attn.o_proj.weight"] = (d, q * dims.head_dim)
        shapes[f"{layer}mlp.gate_proj.weight"] = (m, d)
        shapes[f"{layer}mlp.up_proj.weight"] = (m, d)
        shapes[f"{layer}mlp.down_proj.weight"] = (d, m)
        shapes[f"{layer}input_layernorm.weight"] = (d,)
        shapes[f"{layer}post_attention_layernorm.weight"] = (d,)
    shapes["llm.norm.weight"] = (d,)
    return shapes


def vision_shapes(dims: VisionDims, llm_hidden: int) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of the tower's used layers, the projector and the newline."""
    d, m = dims.hidden, dims.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "vision.embeddings.patch_embedding.weight": (d, 3, dims.patch, dims.patch),
        "vision.embeddings.patch_embedding.bias": (d,),
        "vision.embeddings.position_embedding.weight": (dims.patches, d),
    }
    for i in range(dims.layers):
        layer = f"vision.encoder.layers.{i}."
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes[f"{layer}self_attn.{part}.weight"] = (d, d)
            shapes[f"{layer}self_attn.{part}.bias"] = (d,)
        shapes[f"{layer}mlp.fc1.weight"], shapes[f"{layer}mlp.fc1.bias"] = (m, d), (m,)
        shapes[f"{layer}mlp.fc2.weight"], shapes[f"{layer}mlp.fc2.bias"] = (d, m), (d,)
        for norm in ("layer_norm1", "layer_norm2"):
            shapes[f"{layer}{norm}.weight"] = shapes[f"{layer}{norm}.bias"] = (d,)
    shapes["projector.linear_1.weight"] = (llm_hidden, d)
    shapes["projector.linear_1.bias"] = (llm_hidden,)
    shapes["projector.linear_2.weight"] = (llm_hidden, llm_hidden)
    shapes["projector.linear_2.bias"] = (llm_hidden,)
    shapes["image_newline"] = (llm_hidden,)
    return shapes
