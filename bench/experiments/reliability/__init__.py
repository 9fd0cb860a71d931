"""Fifteen tests of reliability against a running server, each with its criterion.

python -m dycoke_trt.bench.experiments.reliability SERVER_OR_BUNDLE -o result.json
"""
