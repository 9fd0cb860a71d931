"""What the models are: their shapes, their forward passes, one row per family."""
