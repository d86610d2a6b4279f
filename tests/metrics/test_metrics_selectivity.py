"""Average Drop, Gain and Increase against the exponent of the map, against loops over single images."""

from __future__ import annotations

import pytest
import torch
from metric_tester import MetricTester

from optcam_pl.metrics import SelectivityDrop, SelectivityGain, SelectivityIncrease
from optcam_pl.metrics.selectivity import ALPHAS

ONE_IMAGE = {
    SelectivityDrop: lambda p, o: 100 * max(p - o, 0) / p,
    SelectivityGain: lambda p, o: 100 * max(o - p, 0) / (1 - p),
    SelectivityIncrease: lambda p, o: 100.0 * (p < o),
}


def evidence() -> list[dict[str, torch.Tensor]]:
    """Seven images in uneven batches, at three alphas."""
    generator = torch.Generator().manual_seed(0)
    p = 0.05 + 0.9 * torch.rand(7, generator=generator)
    o = torch.rand(7, 3, generator=generator)
    return [
        {"original": a, "selectivity_curve": b} for a, b in zip(p.split([2, 4, 1]), o.split([2, 4, 1]), strict=True)
    ]


@pytest.mark.ddp
class TestClasses(MetricTester):
    @pytest.mark.parametrize("metric", list(ONE_IMAGE))
    def test_keeps_what_every_metric_promises(self, metric) -> None:
        expected = [
            [
                sum(ONE_IMAGE[metric](p, o) for o in row) / 3
                for p, row in zip(batch["original"].tolist(), batch["selectivity_curve"].tolist(), strict=True)
            ]
            for batch in evidence()
        ]
        self.check(lambda: metric(alphas=(0.5, 1, 2)), evidence(), expected)


def test_the_curve_is_the_metric_at_each_alpha() -> None:
    metric = SelectivityGain(alphas=[0.5, 1, 2])
    for batch in evidence():
        metric.update(**batch)
    p = torch.cat([batch["original"] for batch in evidence()]).tolist()
    o = torch.cat([batch["selectivity_curve"] for batch in evidence()]).tolist()
    for n in range(3):
        want = sum(ONE_IMAGE[SelectivityGain](p[i], o[i][n]) for i in range(7)) / 7
        assert metric.curve()[0][n].item() == pytest.approx(want, rel=1e-5)
    assert metric.positions().tolist() == [0.5, 1, 2]
    assert metric.settings() == {"selectivity_gain_alphas": "0.5 1 2"}


def test_the_alphas_are_the_papers_and_have_to_be_positive() -> None:
    assert SelectivityDrop().alphas == ALPHAS
    for alphas in ([], [0.0], [1.0, -1.0], [float("inf")]):
        with pytest.raises(ValueError, match="Expected `alphas` to be positive numbers"):
            SelectivityDrop(alphas=alphas)
    with pytest.raises(ValueError, match=r"curves of shape \(B,10\)"):
        SelectivityDrop().update(torch.tensor([0.5]), torch.ones(1, 3))
