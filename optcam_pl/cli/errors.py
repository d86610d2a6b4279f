"""Shortens jsonargparse's errors to the fault, without the types that were tried."""

from __future__ import annotations

_UNION = "Does not validate against any of the Union subtypes"
_NONE = "Expected a <class 'NoneType'>"


def plain(message: str) -> str:
    """Shorten the blocks in which jsonargparse lists what was wrong with each type that a setting may have.

    Only the faults of a block are kept, each once, without those that only name another type where one says more, and
    without the value, which may be a whole configuration. A single fault replaces its block. Text without such a block
    is not changed.

    Example:
        >>> print(plain('''Parser key "data":
        ...   Does not validate against any of the Union subtypes
        ...   Subtypes: [<class 'ImageDataModule'>, <class 'NoneType'>]
        ...   Errors:
        ...     - There is no folder 'x'.
        ...     - Expected a <class 'NoneType'>
        ...   Given value type: <class 'Namespace'>
        ...   Given value: Namespace(root='x')'''))
        Parser key "data":
          There is no folder 'x'.
    """
    return "\n".join(_shortened(message.split("\n")))


def _shortened(lines: list[str]) -> list[str]:
    start = next((number for number, line in enumerate(lines) if line.strip() == _UNION), None)
    if start is None:
        return lines
    margin = " " * (len(lines[start]) - len(lines[start].lstrip()))
    ends = (number for number in range(start, len(lines)) if lines[number].startswith(f"{margin}Given value: "))
    end = next(ends, None)
    if end is None:
        return lines
    faults: list[list[str]] = []
    for line in lines[start + 1 : end]:
        if line.startswith(f"{margin}  - "):
            faults.append([line.removeprefix(f"{margin}  - ")])
        elif faults and (not line or line.startswith(f"{margin}    ")):
            faults[-1].append(line.removeprefix(f"{margin}    "))
    told = [fault for number, fault in enumerate(faults) if fault != [_NONE] and fault not in faults[:number]]
    told = [_shortened(fault) for fault in told if not _only_type(fault)] or [_shortened(fault) for fault in told]
    bullets = ("", "") if len(told) == 1 else ("- ", "  ")
    block = [
        f"{margin}{bullets[place > 0]}{line}" for fault in told for place, line in enumerate(fault) if line.strip()
    ]
    return lines[:start] + block + _shortened(lines[end + 1 :])


def _only_type(fault: list[str]) -> bool:
    return len(fault) == 1 and fault[0].startswith("Expected a <class ") and fault[0].endswith(">")
