from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Empty caches and no network, whatever this machine has."""

    def refuse(*_: Any) -> None:
        raise AssertionError("went to the network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    caplog.set_level(logging.WARNING, logger="dyce_export")
