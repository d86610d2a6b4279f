"""The command `optcam`, one command a file."""

from optcam_pl.cli.main import main

__all__ = ["main"]
