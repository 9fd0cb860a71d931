"""Device kernels in the Triton language: the only kernel source, for CUDA, AOT and interpreter."""
