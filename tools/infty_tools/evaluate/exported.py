"""An exported model under evaluation: segment by segment, its state in an InftyCache."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from infty.data.documents import Documents
from infty.data.lanes import Window
from infty.hf.cache_infty import InftyCache
from infty.hf.configuration_infty import InftyConfig
from infty.hf.kinds_infty import sections_of
from infty.hf.modeling_infty import InftyForCausalLM
from infty_tools.evaluate.folders import check_tokens, judged, loaded


class ExportedModel:
    """A folder that `infty export` made."""

    tensor = 1
    window = None
    description = "export"

    def __init__(self, folder: Path, documents: Documents) -> None:
        """Raises UserError where the folder does not fit the documents."""
        self.folder = folder
        self.config = loaded(folder, lambda: InftyConfig.from_pretrained(folder))
        check_tokens(folder, self.config.vocab_size, documents)

    @property
    def remembers(self) -> bool:
        """Whether it has a long-term memory."""
        layers = range(self.config.num_hidden_layers)
        return any(sections_of(self.config, layer) for layer in layers)

    def load(self, device: str) -> Exported:
        model = loaded(self.folder, lambda: InftyForCausalLM.from_pretrained(self.folder))
        return Exported(model.to(device).eval(), device)


class Exported:
    """An exported model that reads windows; see `infty_pretrain.evaluation.Remembers`."""

    window_segments = 1

    def __init__(self, model: InftyForCausalLM, device: str) -> None:
        self.model, self.device = model, device
        self.segment_length = model.config.segment_length

    def begin(self, lanes: int) -> InftyCache:
        return InftyCache()

    def read(
        self, window: Window, state: InftyCache, enabled: bool = True
    ) -> tuple[Tensor, Tensor, InftyCache]:
        """`state` goes on in place."""
        found = []
        for s in range(window.reset.shape[1]):
            # What fills up a document's last segment is read too: the next segment begins another document.
            state.start_document(window.reset[:, s].cpu())
            logits = self.model(window.tokens[:, s], cache=state, memory_enabled=enabled).logits
            found.append(judged(logits, window.labels[:, s]))
        nll, correct = (torch.stack(parts, 1) for parts in zip(*found))
        return nll, correct, state

    def lend(self, own: InftyCache, donor: InftyCache) -> InftyCache:
        return own.with_memories(donor)
