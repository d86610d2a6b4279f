"""How long the command takes before it works, beside the imports that it cannot do without.

python benchmarks/startup.py [--rounds 3]

Run it in the root of a checkout.
"""

from __future__ import annotations

import subprocess
import sys

from common import Claim, Contestant, arguments, finish, race

COMMANDS = {
    "python": ["-c", "pass"],
    "import torch, lightning": ["-c", "import torch, lightning"],
    "import optcam_pl": ["-c", "import optcam_pl"],
    "import optcam_pl, all names": ["-c", "import optcam_pl; [getattr(optcam_pl, name) for name in optcam_pl.__all__]"],
    "optcam --help": ["-m", "optcam_pl", "--help"],
    "optcam test --print_config": ["-m", "optcam_pl", "test", "--config", "configs/demo.yaml", "--print_config"],
}


def main() -> None:
    options = arguments(__doc__, rounds=3)
    contestants = [
        Contestant(
            name,
            lambda command=command: subprocess.run([sys.executable, *command], check=True, capture_output=True),
            "limit" if name == "import torch, lightning" else "ours",
        )
        for name, command in COMMANDS.items()
    ]
    table = race("A process from start to end", "a process", contestants, options.rounds)
    table.shows.append(Claim("optcam --help", "import torch, lightning", 0.5))
    finish("startup", [table], options)


if __name__ == "__main__":
    main()
