"""The LLM on a TensorRT-LLM engine in this process, through TensorRT-LLM's executor bindings."""
