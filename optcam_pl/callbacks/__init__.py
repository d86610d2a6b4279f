"""Callbacks that show a run: TensorBoard and other loggers, maps and overlays on disk, progress in images."""

from optcam_pl.callbacks.comparison import write_comparison
from optcam_pl.callbacks.explain import ExplainCallback
from optcam_pl.callbacks.inspection import TensorBoardPanels
from optcam_pl.callbacks.progress import ImageProgress
from optcam_pl.callbacks.writer import MapWriter, file_name, image_panel, overlay_folder

__all__ = [
    "ExplainCallback",
    "ImageProgress",
    "MapWriter",
    "TensorBoardPanels",
    "file_name",
    "image_panel",
    "overlay_folder",
    "write_comparison",
]
