"""The embedded default: synthetic videos with questions, and the small model trained on them."""

from pathlib import Path

MODEL_DIR = Path(__file__).parent / "model"
CLIPS_DIR = Path(__file__).parent / "clips"
