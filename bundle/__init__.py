"""The bundle: one directory that holds everything a deployment needs, under one manifest."""
