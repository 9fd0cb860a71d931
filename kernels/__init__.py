"""Device kernels in the Triton language: the only kernel source, for CUDA, AOT and interpreter."""

MANIFEST = "manifest.json"  # beside images that were compiled (aot.py): what launchers need to know
