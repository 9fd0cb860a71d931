"""The native LLM backend: a paged Qwen2 runtime in torch, in TensorRT-LLM's layouts."""
