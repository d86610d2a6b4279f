"""`python -m optcam_pl`: the same as `optcam`."""

import sys

from optcam_pl.cli import main

if __name__ == "__main__":
    sys.exit(main())
