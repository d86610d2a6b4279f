"""Draw which room imports which, as the package's source says: docs/architecture.png, and the table in the page.

python docs/make_architecture.py          writes both
python docs/make_architecture.py --check  exits with 1 where the page is not what it would write
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import grimp
import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

PAGE = Path(__file__).with_name("architecture.md")
sys.path.insert(0, str(PAGE.parent.parent))  # this checkout, not another one that is installed
FLOORS = (
    ("cli",),
    ("callbacks",),
    ("tasks", "notebook"),
    ("evaluate",),
    ("reports",),
    ("explainers", "runs"),
    ("network", "metrics", "data"),
    ("kernels",),
    ("maps", "figures", "imagenet", "threads", "photos"),
    ("checks", "private", "metric_info"),
)
ROOMS = [room for floor in FLOORS for room in floor]


def imports() -> dict[str, list[str]]:
    """Room -> the rooms that it imports, from the top floor down."""
    graph = grimp.build_graph("optcam_pl")
    unknown = {name.split(".")[1] for name in graph.modules if "." in name} - {*ROOMS, "__main__"}
    if unknown:
        sys.exit(f"FLOORS lacks {', '.join(sorted(unknown))}.")
    found: dict[str, set[str]] = {room: set() for room in ROOMS}
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            source, target = (name.split(".")[1] if "." in name else "" for name in (module, imported))
            if source in found and target in found and source != target:
                found[source].add(target)
    return {room: sorted(targets, key=ROOMS.index) for room, targets in found.items()}


def circle(found: dict[str, list[str]]) -> list[str]:
    """The rooms of an import that runs upwards or sideways; empty where there is none."""
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    return [
        f"{room} -> {target}" for room, targets in found.items() for target in targets if floor[target] <= floor[room]
    ]


def draw(found: dict[str, list[str]], path: Path) -> None:
    """The rooms on their floors, an arrow for each import."""
    place = {}
    for level, rooms in enumerate(FLOORS):
        for position, room in enumerate(rooms):
            place[room] = (4.2 * (position - (len(rooms) - 1) / 2) + (0.8 if level % 2 else -0.8), -1.3 * level)
    figure, axes = plt.subplots(figsize=(11, 8), dpi=100)
    for room, targets in found.items():
        for target in targets:
            arrow = {
                "arrowstyle": "->",
                "color": "#88a",
                "shrinkA": 14,
                "shrinkB": 14,
                "connectionstyle": "arc3,rad=0.08",
            }
            axes.annotate("", place[target], place[room], arrowprops=arrow)
    for room, (x, y) in place.items():
        box = {"boxstyle": "round,pad=0.45", "facecolor": "white", "edgecolor": "#224"}
        axes.text(x, y, room, ha="center", va="center", fontsize=13, bbox=box, zorder=3)
    sides = [x for x, _ in place.values()]
    axes.set_xlim(min(sides) - 1.5, max(sides) + 1.5)  # an arrow to a place outside would not be drawn
    axes.set_ylim(-1.3 * (len(FLOORS) - 1) - 0.7, 0.7)
    axes.axis("off")
    figure.savefig(path, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)


def text(found: dict[str, list[str]]) -> str:
    """The table of the page."""
    rows = [
        f"| `{room}` | {', '.join(f'`{target}`' for target in targets) or '-'} |" for room, targets in found.items()
    ]
    return "\n".join(["| room | imports |", "|---|---|", *rows])


def main() -> int:
    """Write or check; see the module."""
    found = imports()
    if wrong := circle(found):
        print("Imports that do not run downwards: " + ", ".join(wrong))
        return 1
    page = PAGE.read_text(encoding="utf-8")
    new = re.sub(r"(?<=<!-- imports -->\n).*?(?=\n<!-- end -->)", lambda _: text(found), page, flags=re.DOTALL)
    if "--check" in sys.argv:
        print("docs/architecture.md is " + ("up to date" if new == page else "not what the source says"))
        return int(new != page)
    PAGE.write_text(new, encoding="utf-8")
    draw(found, PAGE.with_suffix(".png"))
    print(f"{len(ROOMS)} rooms, {sum(map(len, found.values()))} imports between them, none upwards")
    return 0


if __name__ == "__main__":
    sys.exit(main())
