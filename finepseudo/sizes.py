"""Sizes that no recipe chooses: the driver works by them, and the cost model counts by them."""

BLOCK_VIDEOS = 32  # videos that a pass decodes, scores and commits at a time
COMPARED = 2048  # labelled videos that the driver compares with each other, about: a matrix of 32 MiB
JUDGED = 512
"""Unlabelled videos by which temperatures and fusion are set, of labels and of an evaluation: test videos never set
anything."""
