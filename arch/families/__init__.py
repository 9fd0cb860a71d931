"""Model families: each module has a FAMILY (arch/registry.py)."""
