"""Try the default layer on every family of timm and transformers, and write the table of docs/networks.md.

Run: python docs/make_networks.py [OUTPUT.md]   (nothing is downloaded; about a quarter of an hour on one core)

Each network gets random weights (`randomize` says how), one or two images of noise, a Grad-CAM and two steps of
Opti-CAM. Networks run in processes of their own, a dozen a process, with a limit of two minutes for each.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optcam_pl import Classifier, GradCAM, OptiCAM
from optcam_pl.network.choosing import Probe

OUTPUT = Path(__file__).with_name("networks.md")
BATCH = 12  # networks a process
LIMIT = 120  # seconds a network
CLASSES = 10
LARGE = 384  # pixels a side; networks of a fixed size above it are made for `USUAL`
USUAL = 224
SMALL = 96  # pixels a side, for networks that take any size

# Small ones of every family but NASNet, PNASNet, MobileNetV5, DeepSeek's and Gemma's, which have large ones alone.
_SMALL_ONES = """
bat_resnext26ts beit_base_patch16_224 beitv2_base_patch16_224 botnet26t_256 caformer_s18 cait_xxs24_224 coat_lite_tiny
coat_mini coat_tiny coatnet_nano_rw_224 coatnet_pico_rw_224 coatnext_nano_rw_224 convformer_s18 convit_tiny
convmixer_768_32 convnext_atto convnext_pico_ols convnext_zepto_rms convnextv2_atto cpubone_t0 crossvit_9_240
crossvit_9_dagger_240 crossvit_tiny_240 cs3darknet_focus_s cs3darknet_s csatv2 cspdarknet53 cspnext_tiny cspresnet50
darknet53 davit_tiny deit3_small_patch16_224 deit_tiny_distilled_patch16_224 deit_tiny_patch16_224 densenet121 dla34
dla46_c dla60_res2net dpn48b dpn68 eca_botnext26ts_256 eca_nfnet_l0 ecaresnet26t edgenext_xx_small efficientformer_l1
efficientformerv2_s0 efficientnet_b0 efficientnet_es efficientnet_lite0 efficientnetv2_rw_t efficientvim_m1
efficientvit_b0 efficientvit_m0 ese_vovnet19b_dw ese_vovnet19b_slim eva02_tiny_patch14_224 fasternet_t0 fastvit_mci0
fastvit_sa12 fastvit_t8 fbnetc_100 fbnetv3_b focalnet_tiny_lrf focalnet_tiny_srf gcresnext26ts gcvit_xxtiny gernet_s
ghostnet_050 ghostnetv2_100 ghostnetv3_050 gmixer_12_224 gmlp_ti16_224 halonet26t haloregnetz_b hardcorenas_a
hgnet_tiny hgnetv2_b0 hiera_small_abswin_256 hiera_tiny_224 hieradet_small hrnet_w18 hrnet_w18_small iformer_t
inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lambda_resnet26t lcnet_035 lcnetv2_base
legacy_seresnet18 legacy_xception levit_128s levit_conv_128s lowformer_b0 mambaout_femto mambaout_kobe
maxvit_nano_rw_256 maxvit_pico_rw_256 maxvit_tiny_pm_256 maxvit_tiny_tf_224 maxxvit_rmlp_nano_rw_256
maxxvitv2_nano_rw_256 mixer_s16_224 mixer_s32_224 mixnet_s mnasnet_small mobilenetv2_035 mobilenetv3_small_050
mobilenetv4_conv_small_035 mobilenetv4_hybrid_medium mobileone_s0 mobilevit_xxs mobilevitv2_050 mvitv2_small_cls
mvitv2_tiny naflexvit_base_patch16_gap nest_tiny nextvit_small nf_regnet_b0 nf_resnet26 nfnet_l0 pit_s_224
pit_ti_224 pit_ti_distilled_224 poolformer_s12 poolformerv2_s12 pvt_v2_b0 pvt_v2_b2_li qwen3_vit_88m
qwen3_vit_88m_merge rdnet_tiny regnetv_040 regnetx_002 regnety_002 regnetz_005 repghostnet_050 repvgg_a0 repvit_m0_9
repvit_m1 res2net50_14w_8s res2next50 resmlp_12_224 resnest14d resnest26d resnet10t resnet18 resnet33ts resnet50
resnet50_gn resnet50_mlp resnet61q resnetv2_18 resnetv2_50 resnetv2_50x1_bit resnext26ts rexnet_100 rexnetr_100
samvit_base_patch16_224 sehalonet33ts selecsls42 sequencer2d_s seresnet18 shvit_s1 skresnet18 spnasnet_100
starnet_s050 swiftformer_xs swin_s3_tiny_224 swin_tiny_patch4_window7_224 swinv2_cr_tiny_224 swinv2_cr_tiny_ns_224
swinv2_tiny_window8_256 tf_efficientnet_lite0 tf_mobilenetv3_small_minimal_100 tiny_vit_5m_224 tinynet_e
tnt_s_legacy_patch16_224 tnt_s_patch16_224 tresnet_m twins_pcpvt_small twins_svt_small vgg11 vgg11_bn visformer_tiny
vit_base_mci_224 vit_base_patch16_siglip_224 vit_base_patch16_siglip_gap_224 vit_base_patch32_clip_224
vit_dpwee_patch16_reg1_gap_256 vit_medium_patch16_rope_reg1_gap_256 vit_pe_core_tiny_patch16_384
vit_relpos_medium_patch16_cls_224 vit_relpos_small_patch16_224 vit_relpos_small_patch16_rpn_224
vit_small_patch14_dinov2 vit_small_patch14_reg4_dinov2 vit_small_patch16_18x2_224 vit_small_patch16_dinov3
vit_small_patch16_rope_224 vit_small_patch32_224 vit_small_resnet26d_224 vit_srelpos_small_patch16_224
vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 vit_wee_patch16_reg1_gap_256 vitamin_small_224 volo_d1_224 vovnet39a
wide_resnet50_2 xception41 xception41p xcit_nano_12_p16_224 xcit_nano_12_p8_224
"""
TIMM = _SMALL_ONES.split()

_TOKENS: dict[str, Any] = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
_TOKENS |= {"intermediate_size": 32, "image_size": 64, "patch_size": 8}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_SWIN: dict[str, Any] = {"image_size": 64, "patch_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 2]}
_VISION: dict[str, Any] = {"vision_config": _TOKENS}
# Class without "ForImageClassification" -> its tiny configuration.
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "Beit": {**_TOKENS, "out_indices": [1, 2, 3]},
    "Bit": {"embedding_size": 8, **_STAGES, "num_groups": 4},
    "CLIP": _VISION,
    "ConvNext": _STAGES,
    "ConvNextV2": _STAGES,
    "Cvt": {"embed_dim": [12, 24, 36], "num_heads": [1, 2, 3], "depth": [1, 2, 4]},
    "Data2VecVision": {**_TOKENS, "out_indices": [1, 2, 3]},
    "DeiT": _TOKENS,
    "DeiTForImageClassificationWithTeacher": _TOKENS,
    "Dinov2": _TOKENS,
    "Dinov2WithRegisters": _TOKENS,
    "DonutSwin": {**_SWIN, "window_size": 4},
    "EfficientNet": {"width_coefficient": 0.25, "depth_coefficient": 0.25, "image_size": 64, "hidden_dim": 320},
    "FocalNet": {"image_size": 64, "embed_dim": 12, "depths": [1, 1], "focal_levels": [2, 2], "focal_windows": [3, 3]},
    "HGNetV2": {},
    "Hiera": {"image_size": [64, 64], "embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    "IJepa": _TOKENS,
    "ImageGPT": {"n_embd": 24, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 17},
    "Levit": {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [1, 2, 3], "depths": [1, 1, 1]},
    "MetaClip2": _VISION,
    "MobileNetV1": {"depth_multiplier": 0.25},
    "MobileNetV2": {"depth_multiplier": 0.35},
    "MobileViT": {"image_size": 64},
    "MobileViTV2": {"image_size": 64, "width_multiplier": 0.5},
    "PoolFormer": {**_STAGES, "image_size": 64},
    "Pvt": {**_STAGES, "image_size": 64, "num_attention_heads": [1, 1, 2, 2]},
    "PvtV2": {**_STAGES, "image_size": 64, "num_attention_heads": [1, 1, 2, 2]},
    "RegNet": {"embedding_size": 8, **_STAGES, "groups_width": 4},
    "ResNet": {"embedding_size": 8, **_STAGES},
    "Segformer": {**_STAGES, "num_attention_heads": [1, 1, 2, 2]},
    "Siglip": _VISION,
    "SwiftFormer": {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]},
    "Swin": {**_SWIN, "window_size": 4},
    "Swinv2": {**_SWIN, "window_size": 4},
    "TextNet": {},
    "ViT": _TOKENS,
    "ViTMSN": _TOKENS,
}


@dataclass
class Row:
    """A line of the table; `layer` is empty where none was found, `reason` where all is well."""

    network: str
    size: str = ""
    layer: str = ""
    grid: str = ""
    reached: bool = False
    gradcam: bool = False
    opticam: bool = False
    wrapped: bool = False
    reason: str = ""
    before: bool = False
    before_wrapped: bool = False

    @property
    def right(self) -> bool:
        """Every check is passed."""
        return self.reached and self.gradcam and self.opticam and self.wrapped


class Normalize(nn.Module):
    """What people put before a network."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(x - 0.5) / 0.25."""
        return (image - 0.5) / 0.25


def randomize(network: nn.Module) -> nn.Module:
    """Random weights that behave like trained ones, as far as maps are concerned.

    Fresh networks are nearly constant: layer scales of 1e-6, norms that are switched off and heads of zeros let hardly
    anything through. Noise of 0.3 is added to every bias, norm and scale; what is all zero gets noise of 0.05.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim <= 1:
                parameter.add_(noise, alpha=0.3)
            elif not parameter.any():
                parameter.add_(noise, alpha=0.05)
    return network.eval()


def build(name: str) -> tuple[nn.Module, int]:
    """A network and its number of pixels a side."""
    source, _, kind = name.partition("/")
    torch.manual_seed(0)
    if source == "timm":
        import timm

        config = timm.get_pretrained_cfg(kind)
        side = (config.input_size if config else (3, 224, 224))[1]
        large = config is not None and config.fixed_input_size and side > LARGE
        options = {"img_size": USUAL} if large else {}
        network = timm.create_model(kind, pretrained=False, num_classes=CLASSES, **options)
        side = USUAL if large else side
        config = network.pretrained_cfg
        return randomize(network), side if config.get("fixed_input_size") else smallest(network, side)
    import transformers

    kind, _, cls = kind.partition("ForImage")
    config = getattr(transformers, f"{kind}Config")(**TRANSFORMERS[name.partition("/")[2]], num_labels=CLASSES)
    network = getattr(transformers, f"{kind}ForImage{cls or 'Classification'}")(config)
    return randomize(network), 64


def smallest(network: nn.Module, side: int) -> int:
    """About a third of the side that a network is made for, if it takes that; else that side."""
    small = max(SMALL, side // 3 // 32 * 32)
    try:
        with torch.no_grad():
            network(torch.zeros(1, 3, small, small))
    except Exception:  # whatever a network raises for a size that it cannot take
        return side
    return min(small, side)


def right(classifier: Classifier, layer: str | None) -> bool:
    """Whether a gradient reaches the layer's grid of several cells, and its batch dimension is the images'."""
    probe = Probe(classifier, classifier.network, classifier.input_size)
    if layer is None or probe.fault(layer) is not None:
        return False
    _, h, w = probe.grid(layer) or (0, 0, 0)
    return h * w > 1 and probe.reached([layer])[layer]


def try_network(name: str, old: Any = None) -> Row:
    """Everything that the table says of a network."""
    network, side = build(name)
    row, classifier = Row(name, str(side)), Classifier(network, input_size=side)
    try:
        row.layer = classifier.target_layers[0]
        _, h, w = Probe(classifier, network, (side, side)).grid(row.layer) or (0, 0, 0)
        row.grid, row.reached = f"{h} x {w}", right(classifier, row.layer)
        if old is not None:
            row.before = right(classifier, old_layer(old, classifier))
        wrapped = Classifier(nn.Sequential(Normalize(), network), input_size=side)
        if old is not None:
            row.before_wrapped = right(wrapped, old_layer(old, wrapped))
        row.wrapped = wrapped.target_layers == (f"1.{row.layer}",)
        blots = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(1))
        image = nn.functional.interpolate(blots, (side, side), mode="bilinear")
        # The ReLU may cut all of a class's map away where the weights are random: that of one class has to be left.
        row.gradcam = any(not bool(GradCAM()(classifier, image, c).degenerate.all()) for c in range(CLASSES))
        explanation = OptiCAM(max_iter=2)(classifier, image, 0)
        row.opticam = bool(explanation.saliency.isfinite().all()) and not bool(explanation.degenerate.any())
    except Exception as error:  # what the table is for
        row.reason = " ".join(str(error).split()) or type(error).__name__
    return row


def old_layer(old: Any, classifier: Classifier) -> str | None:
    """What an earlier version of layers.py would choose."""
    name: str | None = old.family_layer(classifier.network)
    if name is None:
        image = torch.zeros(1, 3, *classifier.input_size)
        with torch.no_grad():
            traced = old.trace(classifier.network, lambda: classifier(image))
        name = old.last_spatial(classifier.network, traced, classifier.input_size)
    return name


def work(names: list[str], old_file: str | None) -> None:
    """In a process of its own: one line of JSON a network."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    old = None
    if old_file:
        spec = importlib.util.spec_from_file_location("old_layers", old_file)
        assert spec is not None
        assert spec.loader is not None
        old = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(old)

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {LIMIT} seconds")

    signal.signal(signal.SIGALRM, late)
    for name in names:
        signal.alarm(LIMIT)
        try:
            row = try_network(name, old)
        except Exception as error:  # not even built, or too late
            row = Row(name, reason=f"{type(error).__name__}: {' '.join(str(error).split())}")
        signal.alarm(0)
        print(json.dumps(asdict(row)), flush=True)


def sweep(names: list[str], old_file: str | None, log: Path | None) -> Iterator[Row]:
    """The rows of the networks, in order; each is added to the log, if there is one."""
    for start in range(0, len(names), BATCH):
        batch = names[start : start + BATCH]
        command = [sys.executable, __file__, "--work", *batch, *(["--before", old_file] if old_file else [])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        rows = {row["network"]: Row(**row) for row in map(json.loads, done.stdout.splitlines())}
        for name in batch:
            row = rows.get(name) or Row(name, reason=f"its process ended with code {done.returncode}")
            print(row, file=sys.stderr, flush=True)
            if log is not None:
                with log.open("a") as file:
                    file.write(f"{json.dumps(asdict(row))}\n")
            yield row


HEAD = """# Networks: which layer is explained

`Classifier(network)` chooses the layer whose feature maps are explained. This table tries that choice on {total}
networks, {timm} of timm {version} and {transformers} of transformers: small ones of every family, except those of timm
that only have large networks (NASNet, PNASNet, MobileNetV5, the towers of DeepSeek and Gemma).
`python docs/make_networks.py` makes this page. Of the {total}:

- {reached} get a layer with a grid of more than one cell, whose batch dimension is that of the images, and which
  a gradient of the logits reaches;
- {gradcam} give a Grad-CAM map that is not degenerate, and {opticam} run Opti-CAM;
- {wrapped} get the same layer inside `Sequential(Normalize(), network)`;
- refused: {refused}, with the reason in the last column.

The weights are random. Noise is added to all biases, norms and scales, because a fresh network is nearly constant
(layer scales of 1e-6, norms that are switched off, heads of zeros). Networks that take any size get images of a third
of their own size, but at least {small} pixels per side, so grids are smaller here than in use.

| Network | Image | Layer | Grid | Gradient reaches | Grad-CAM | Opti-CAM | Wrapped | Remark |
|---|---|---|---|---|---|---|---|---|
"""


def page(rows: list[Row]) -> str:
    """The whole file."""
    import timm

    counts: dict[str, Any] = {key: sum(getattr(row, key) for row in rows) for key in ("reached", "gradcam", "opticam")}
    counts |= {"wrapped": sum(row.wrapped for row in rows), "refused": sum(not row.layer for row in rows)}
    counts |= {source: sum(row.network.startswith(source) for row in rows) for source in ("timm", "transformers")}
    text = HEAD.format(total=len(rows), small=SMALL, version=timm.__version__, **counts)
    for row in rows:
        marks = [("no", "yes")[value] for value in (row.reached, row.gradcam, row.opticam, row.wrapped)]
        layer = f"`{row.layer}`" if row.layer else "refused"
        cells = [row.network, row.size, layer, row.grid, *marks, row.reason.replace("|", "/")]
        text += f"| {' | '.join(cells)} |\n".replace("  ", " ")
    return text


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", nargs="?", type=Path, default=OUTPUT)
    parser.add_argument("--work", nargs="+", metavar="NETWORK", help="print the rows of these networks as JSON")
    parser.add_argument("--rows", type=Path, help="file of finished rows, to go on with after an interruption")
    parser.add_argument("--before", metavar="LAYERS.PY", help="count what an earlier version of layers.py gets right")
    options = parser.parse_args()
    if options.work:
        work(options.work, options.before)
        return
    names = [*(f"timm/{name}" for name in TIMM), *(f"transformers/{name}" for name in TRANSFORMERS)]
    lines = options.rows.read_text().splitlines() if options.rows and options.rows.exists() else []
    known = {row["network"]: Row(**row) for row in map(json.loads, lines)}
    known |= {row.network: row for row in sweep([n for n in names if n not in known], options.before, options.rows)}
    rows = [known[name] for name in names]
    options.output.write_text(page(rows))
    if options.before:
        print(f"right before: {sum(r.before for r in rows)} bare, {sum(r.before_wrapped for r in rows)} wrapped")
    print(f"right: {sum(r.reached for r in rows)} bare, {sum(r.wrapped and r.reached for r in rows)} wrapped")
    print(f"all checks passed: {sum(r.right for r in rows)} of {len(rows)}")


if __name__ == "__main__":
    main()
