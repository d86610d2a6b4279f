"""What the callbacks of a run of maps share."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback

from optcam_pl.tasks import BlockResult, SaliencyTask


class BlockCallback(Callback):
    """Calls `on_block` with the result of every block, in every stage."""

    def on_block(self, trainer: L.Trainer, task: SaliencyTask, result: BlockResult) -> None:
        """Called after every block, on every rank."""

    def _after(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if isinstance(pl_module, SaliencyTask) and pl_module.result is not None:
            self.on_block(trainer, pl_module, pl_module.result)

    on_train_batch_end = on_validation_batch_end = _after
    on_test_batch_end = on_predict_batch_end = _after
