"""Proof that a bundle computes what its source model computes."""
