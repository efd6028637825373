"""infty: language models with an unbounded continuous memory."""

__version__ = "0.2.0"
