"""Accuracy: what compression costs in right answers, measured against an oracle that is obvious."""
