"""What a run needs, whoever runs: a directory, checkpoints, metrics, a console and a report."""
