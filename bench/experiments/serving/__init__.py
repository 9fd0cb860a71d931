"""What Triton adds to the same bundle in one process."""
