"""What the benchmarks share: one thread, the words for a machine, and medians with their spread.

Machines are noisy, so two sides always take turns and each round gives one ratio; only ratios are to be trusted.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def use_one_thread() -> None:
    """Hold this process and those that it starts to one thread and to local files; call it before torch is imported."""
    os.environ.update(
        OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1", TQDM_DISABLE="1"
    )


def machine(packages: Iterable[str] = ("torch", "transformers", "trl")) -> str:
    """Say in words what ran: the kind of processor, its cores, and versions."""
    versions = [f"Python {platform.python_version()}", *(f"{name} {_version(name)}" for name in packages)]
    return f"{_processor()}, {os.cpu_count()} cores, one thread a side; {', '.join(versions)}"


def peak_megabytes() -> float:
    """Return the most memory that this process has held, as Linux counts it."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Write a median and its range.

    >>> spread([3.0, 1.0, 2.0], digits=1)
    '2.0 (1.0-3.0)'
    """
    median, low, high = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Write a Markdown table.

    >>> print(table(["side", "seconds"], [["a", 1]]))
    | side | seconds |
    |---|---|
    | a | 1 |
    """
    lines = [head, *rows]
    texts = [f"| {' | '.join(str(cell) for cell in line)} |" for line in lines]
    return "\n".join([texts[0], "|---" * len(head) + "|", *texts[1:]])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = {key: text.split(":", 1)[1].strip() for text in lines for key in ("model name", "flags") if key in text}
    vectors = next((kind for kind in ("avx512f", "avx2") if kind in names.get("flags", "").split()), "")
    return " ".join([names.get("model name", platform.machine()), vectors]).strip()
