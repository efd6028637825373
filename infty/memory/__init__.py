"""The continuous memory: basis, regression, contraction, warp and density. Needs torch and nothing else."""

from infty.memory.config import MemoryConfig
from infty.memory.memory import ContinuousMemory
from infty.memory.state import MemoryState

__all__ = ["ContinuousMemory", "MemoryConfig", "MemoryState"]
