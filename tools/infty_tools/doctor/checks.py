"""The checks of `infty doctor`. Each runs on every process; what any process finds wrong is wrong."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from infty.errors import UserError
from infty_pretrain.config import Config
from infty_pretrain.launch import Launch
from infty_tools.doctor import disk, machines
from infty_tools.doctor.findings import Finding, everywhere


def run(config: Config | None, here: Launch) -> list[Finding]:
    """Every check, in order; the same list on every process. Joins the other processes first."""
    findings = [machines.versions(), machines.devices(here)]
    try:
        machines.connect(here)
    except Exception as error:
        return [
            *findings,
            Finding(
                "communication",
                f"{type(error).__name__} on {socket.gethostname()}",
                False,
                f"{here.world} processes cannot meet at {os.environ.get('MASTER_ADDR')}:"
                f"{os.environ.get('MASTER_PORT')}: {str(error).splitlines()[0]}",
            ),
        ]
    findings = [everywhere(f) for f in findings]
    gpus = machines.gpus(here)
    findings += [
        machines.same_versions(),
        machines.layout(config, here),
        machines.own_gpus(gpus),
        machines.communication(here, gpus),
        machines.clocks(),
    ]
    if config is not None:
        checks = (disk.shared_folder, disk.space, disk.write_speed, dataset)
        findings += [everywhere(_safely(check, config)) for check in checks]
    return findings


def _safely(check: Callable[[Config], Finding], config: Config) -> Finding:
    """A check that fails in an unforeseen way has found something, too."""
    try:
        return check(config)
    except (UserError, OSError) as error:
        return Finding(check.__name__.replace("_", " "), "not usable", False, str(error))


def dataset(config: Config) -> Finding:
    """Read both ends of every dataset, and its tokenizer, as training will."""
    from infty.data.documents import Documents

    texts = []
    for key, folder in (
        ("data.train", config.data.train),
        ("data.validation", config.data.validation),
    ):
        if folder is None:
            continue
        documents = Documents.open(folder)
        for document in (0, len(documents) - 1):
            documents.read(document, 0, 8)
        if documents.tokenizer.vocab_size != documents.vocab_size:
            raise UserError(
                f"{key}: the tokenizer in {folder} is not the one the dataset was made with"
            )
        texts.append(f"{key} {len(documents):,} documents, {documents.info.tokens:,} tokens")
    return Finding("dataset", "; ".join(texts))
