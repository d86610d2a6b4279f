"""Run third-party code without side effects: random generators, hooks and attributes are restored afterwards."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from optcam_pl.network.classifier import Classifier
from optcam_pl.threads import OwnHook, alone, process_wide


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators of torch, numpy and Python; restore their states afterwards.

    Only one thread at a time may do this, because the generators belong to the whole process.
    """
    with process_wide(), torch.random.fork_rng([device] if device.type == "cuda" else []):
        others, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (Captum draws from numpy's global one)
        try:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
        finally:
            random.setstate(others)
            np.random.set_state(legacy)  # noqa: NPY002


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """On exit, every module has the attributes, hooks, mode and parameters that it had on entry.

    Third-party methods remove their own hooks, but not all of them after an exception. Meanwhile, other threads do not
    run the network, but they may add or remove hooks of this package.
    """
    with alone(network.network if isinstance(network, Classifier) else network), _put_back(network):
        yield


@contextmanager
def _put_back(network: nn.Module) -> Iterator[None]:
    modules = [(vars(module), dict(vars(module))) for module in network.modules()]
    tables = [(value, dict(value)) for _, before in modules for value in before.values() if isinstance(value, dict)]
    parameters = [(parameter, parameter.requires_grad, parameter.grad) for parameter in network.parameters()]
    try:
        yield
    finally:
        for now, before in [*modules, *tables]:
            _restore(now, before)
        for parameter, requires_grad, gradient in parameters:
            parameter.requires_grad_(requires_grad)
            parameter.grad = gradient


def _restore(now: dict[Any, Any], before: dict[Any, Any]) -> None:
    """Make `now` equal to `before`, item by item, because other threads read it; their hooks are not changed."""
    for key, value in list(now.items()):
        if key not in before and not isinstance(value, OwnHook):
            del now[key]
    before = {key: value for key, value in before.items() if not isinstance(value, OwnHook)}
    for key, value in before.items():
        if key not in now or now[key] is not value:
            now[key] = value
    if [key for key in list(now) if key in before] != list(before):  # a removed item was put back at the end
        for key in before:
            now[key] = now.pop(key)
