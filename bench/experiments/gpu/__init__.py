"""One GPU measured: rates, kernels, serving, targets."""
