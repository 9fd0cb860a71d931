"""How tokens attend to the paged KV pool, on a CPU and on a GPU."""
