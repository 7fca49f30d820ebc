"""What a run needs, whoever runs: a directory, checkpoints, metrics, a console and a report.

    from align.runs.run import run                                  the loop; needs torch, for its checkpoints
    from align.runs.checkpoint import save_checkpoint, load_latest

What reads a run that is over is here, and imports no torch, so that `align report` and `align doctor` answer at once.
"""

from align.runs.directory import RunDirectory, RunError
from align.runs.health import findings
from align.runs.readings import Finding
from align.runs.report import write_report

__all__ = ["Finding", "RunDirectory", "RunError", "findings", "write_report"]
