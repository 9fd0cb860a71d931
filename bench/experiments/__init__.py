"""Measurements that docs quote: how the product does, not what a user runs on it."""
