"""Runs a bundle: video decoding, the vision session, LLM backends, generation."""
