"""Reads that never store the tokens x functions weights: in cache on a CPU, in Triton tiles on a GPU."""
