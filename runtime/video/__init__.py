"""Video files to the frames that a model sees."""
