"""The command `optcam`."""

from optcam_pl.cli.lightning_cli import main

__all__ = ["main"]
