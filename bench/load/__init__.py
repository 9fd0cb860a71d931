"""Load on a running server: dycoke bench."""
