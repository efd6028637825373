"""What every process of a run imports, imported once for all of them: see processes.context."""

from infty_pretrain import launch

launch.quiet()

import torch._dynamo  # noqa: E402, F401  (by the first step)

import infty_pretrain.idle  # noqa: E402
import infty_pretrain.trainer  # noqa: E402, F401
import infty_tools.cli  # noqa: E402
import infty_tools.pretrain  # noqa: E402, F401
