"""The embedded default: synthetic videos with questions, and the small model trained on them."""
