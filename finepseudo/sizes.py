"""Sizes that no recipe chooses: the driver works by them, and the cost model counts by them."""

BLOCK_VIDEOS = 32  # videos that a pass decodes, scores and commits at a time
COMPARED = 2048  # labelled videos that the driver compares with each other, about: a matrix of 32 MiB
SAMPLED = 4096  # unlabelled videos that temperatures are fitted on, at most
CALIBRATION = 256
"""Unlabelled videos on which the temperatures of an evaluation are set: test videos never set anything."""
