"""The Triton model repository: its models, their configuration, and the server that runs it."""
