"""What recipes that draw share: matplotlib, imported when something is drawn, and one look for all."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

COLOURS = ("#2b6cb0", "#c05621", "#2f855a", "#805ad5", "#b7791f", "#c53030", "#4a5568", "#0987a0", "#97266d", "#1a202c")


def pyplot() -> Any:
    """Return matplotlib's pyplot, drawing into files.

    Raises:
        ValueError: if matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plot
    except ImportError as error:
        raise ValueError("a picture needs matplotlib: pip install 'align-rl[classic]'") from error
    plot.rcParams.update(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25}
    )
    return plot


def place(directory: Path | None, name: str) -> Path:
    """Make the folder of a picture, by default a new one under runs/."""
    folder = directory or Path("runs") / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
