"""What every metric of the agents means: over what it is taken, and its unit. A test fails on one that is not here."""

METRICS: dict[str, str] = {
    "episode/return": "mean over the step's episodes of the sum of rewards, not discounted, while exploring",
    "episode/length": "mean over the step's episodes of the actions taken",
    "episode/count": "episodes finished since the run began",
    "env/steps": "actions taken in the environment since the run began; steps from a learned model do not count",
    "exploration/rate": "how much the behaviour explores now: epsilon, the temperature, or the width of its bound",
    "learning/alpha": "step size of the last episode: the share of the way from an entry to its target",
    "eval/greedy_value": "discounted value of the greedy policy from the start, computed on the table, not sampled",
}
