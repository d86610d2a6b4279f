"""Write the table of docs/metrics.md from the metrics themselves.

python docs/make_metrics.py          writes it
python docs/make_metrics.py --check  exits with 1 where the page is not what it would write
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

PAGE = Path(__file__).with_name("metrics.md")
sys.path.insert(0, str(PAGE.resolve().parent.parent))  # this checkout, not another one that is installed


def lines() -> str:
    """One line for each metric of the package."""
    from optcam_pl.metrics import METRICS

    rows = ["| in tables | class | unit | better | conventions, and what they are by default | measured from |"]
    rows.append("|---|---|---|---|---|---|")
    for kind in METRICS.values():
        metric = kind()
        better = "higher" if metric.higher_is_better else "lower"
        settings = ", ".join(f"`{key}`: {_words(value)}" for key, value in metric.settings().items())
        needs = ", ".join(metric.needs())
        unit = metric.unit or "-"
        rows.append(f"| {metric.label or metric.key} | `{kind.__name__}` | {unit} | {better} | {settings} | {needs} |")
    return "\n".join(rows)


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def main(argv: list[str]) -> int:
    """Write or check the page."""
    old = PAGE.read_text(encoding="utf-8")
    inside = f"<!-- metrics -->\n{lines()}\n<!-- end -->"
    new = re.sub(r"<!-- metrics -->.*<!-- end -->", lambda _: inside, old, flags=re.DOTALL)
    if "--check" in argv:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
