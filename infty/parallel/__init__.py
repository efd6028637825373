"""Tensor and data parallelism: groups, collectives, random streams."""
