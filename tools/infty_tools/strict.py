"""A verb whose options count once."""

from __future__ import annotations

from collections import Counter
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption


class StrictCommand(TyperCommand):
    """Refuses an option that is given twice: of two values the first would be lost without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the base class. Raises typer.BadParameter."""
        _, _, given = self.make_parser(ctx).parse_args(args=list(args))
        options = Counter(p for p in given if isinstance(p, TyperOption) and not p.multiple)
        for option, times in options.items():
            if times > 1 and not option.count:
                raise typer.BadParameter(
                    f"it is given {times} times: give it once", ctx=ctx, param=option
                )
        return super().parse_args(ctx, args)
