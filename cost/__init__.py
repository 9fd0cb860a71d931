"""What a request costs, on paper: dimensions, FLOPs, bytes, floors, GPUs."""
