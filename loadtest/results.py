"""The results of a run, as they are stored in a file, and whether they reach their aims."""

import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from loadtest.confidence import median_bound
from loadtest.scenario import Aim
from supervisors.machine.quota import cores


class Found(Struct, frozen=True):
    """The results of one scenario: each side's value in every round, pgqrs first."""

    scenario: str
    unit: str
    better: Literal["more", "less"]
    values: dict[str, list[float]]
    aims: dict[str, Aim]
    apart: bool = False
    chart: str = ""
    # Of each side that is pgqrs, by kind, per message: medians.
    costs: dict[str, dict[str, float]] = {}
    # The sides without a value, and why.
    failed: dict[str, str] = {}

    @property
    def ours(self) -> str:
        return next(iter(self.values), "")

    def ratios(self, side: str) -> list[float]:
        """The ratios of pgqrs to that side, round by round."""
        return [a / b for a, b in zip(self.values[self.ours], self.values[side], strict=True)]


class Results(Struct, frozen=True):
    # Date, commit, machine, server, command.
    context: dict[str, str]
    found: list[Found]

    def write(self, file: Path) -> None:
        file.write_bytes(msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")


def read(file: Path) -> Results:
    return msgspec.json.decode(file.read_bytes(), type=Results)


class Line(Struct, frozen=True):
    """One line of the table. `reached` is None if there is no aim."""

    scenario: str
    ours: str
    beside: str
    ratio: str
    aim: str
    reached: bool | None


def lines(results: Results) -> list[Line]:
    return [line for found in results.found for line in _lines(found)]


def _lines(found: Found) -> list[Line]:
    if not found.values:
        return [Line(_title(found), "failed", _failures(found), "", "", False)]
    told = []
    for side in found.values:
        aim = found.aims.get(side, Aim())
        if side == found.ours and len(found.values) > 1 and not found.apart:
            # The lines of the other sides contain it.
            continue
        told.append(_line(found, side, aim))
    if found.failed:
        told.append(Line(_title(found), "", _failures(found), "", "", None))
    return told


def _line(found: Found, side: str, aim: Aim) -> Line:
    value = number(statistics.median(found.values[side]))
    if side == found.ours or found.apart:
        aimed = "" if aim.value is None else f"{_bound(found)} {aim.value:g}"
        reached = (
            None if aim.value is None else _holds(found, statistics.median(found.values[side]), aim.value)
        )
        return Line(_title(found), _named(side, value), "", "", aimed, reached)
    ratios = found.ratios(side)
    ratio = statistics.median(ratios)
    bound = median_bound(ratios, "upper" if found.better == "less" else "lower")
    told = f"{ratio:.2f}"
    aims: list[str] = []
    verdicts: list[bool] = []
    if aim.ratio is not None:
        aims.append(f"{_bound(found)} {aim.ratio:g}")
        verdicts.append(_holds(found, ratio, aim.ratio))
    if aim.ratio_bound is not None:
        told += f", bound {bound:.3f}" if bound is not None else ", too few rounds for a bound"
        aims.append(f"95 % bound {_bound(found)} {aim.ratio_bound:g}")
        verdicts.append(bound is not None and _holds(found, bound, aim.ratio_bound))
    ours = _named(found.ours, number(statistics.median(found.values[found.ours])))
    reached = all(verdicts) if verdicts else None
    return Line(_title(found), ours, f"{side}: {value}", told, ", ".join(aims), reached)


def _named(side: str, value: str) -> str:
    return value if side == "pgqrs" else f"{side.removeprefix('pgqrs, ')}: {value}"


def _holds(found: Found, value: float, bound: float) -> bool:
    return value >= bound if found.better == "more" else value <= bound


def _bound(found: Found) -> str:
    return "at least" if found.better == "more" else "at most"


def _title(found: Found) -> str:
    return f"{found.scenario}, {found.unit}"


def _failures(found: Found) -> str:
    return "; ".join(f"{side} gave nothing: {why}" for side, why in found.failed.items())


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def context(command: str, server: str) -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": machine(),
        "load": f"load average {os.getloadavg()[0]:.1f} before",
        "server": server,
        "command": command,
    }


def commit() -> str:
    asked = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return asked.stdout.strip() or "unknown"


def machine() -> str:
    memory = next(
        (line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in line),
        "0",
    )
    return f"{cores()} cores, {int(memory) // 2**20} GB, Python {platform.python_version()}"
