"""The beginning of a program that an export must run in alone: nothing of infty can be found there."""

from __future__ import annotations

PACKAGES = ("infty", "infty_pretrain", "infty_tools", "deepspeed", "megatron")

# Not found rather than an error when it is looked for: transformers asks whether deepspeed is there, and goes on.
HIDE = f"""
import sys
class Without:
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {PACKAGES!r} else self.finder.find_spec(name, path, target)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""
