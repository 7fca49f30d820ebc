"""What the metrics of agents mean: the estimator, over what it is taken, its unit. A test fails on one not here.

The figures of an update are over all its minibatches together.
"""

METRICS: dict[str, str] = {
    "episode/return": "mean undiscounted sum of rewards of the latest 100 episodes, as they were before any shaping; "
    "REINFORCE and tables: of the step's episodes; tables: of what was learned from",
    "episode/length": "mean over the same episodes of their steps",
    "episode/count": "episodes that ended since the start",
    "steps/total": "environment steps since the start, all environments together; none from a learned model",
    "steps/per_second": "environment steps acted and learned from, per second of the update",
    "loss/policy": "mean policy loss over what was learned from; its value says little, its gradient is what counts",
    "loss/value": "mean loss of the critic or baseline, before its weight; half the squared error to the returns",
    "loss/td": "mean loss of the TD errors that were learned from, weighted by importance where draws are prioritised",
    "value/td_error": "mean |target - Q(s, a)| over the transitions learned from, in the unit of the returns",
    "policy/epsilon": "share of actions that are random",
    "policy/entropy": "mean entropy of the distribution over actions in the states learned from, nats",
    "policy/approx_kl": "k3 estimate of KL(policy that acted || policy after the update), mean over the rollout, nats",
    "policy/clip_fraction": "share of the rollout whose ratio after the update lies beyond the clip",
    "policy/epochs": "epochs taken before the KL stopped them",
    "value/explained_variance": "1 - variance of (return - value) / variance of returns, before learning; 1 is perfect",
    "optim/grad_norm": "mean over the update's gradient steps of the norm before clipping",
    "optim/updates": "gradient steps since the start",
    "optim/learning_rate": "learning rate of the update",
    "seeds/return_low": "of several seeds at once, the lowest episode/return; the other metrics are means",
    "seeds/return_high": "of several seeds at once, the highest episode/return",
    "time/step": "seconds of the update: acting and learning",
    "exploration/rate": "how much a tabular agent explores now: epsilon, the temperature, or the width of its bound",
    "learning/alpha": "step size of the last episode: the share of the way from an entry to its target",
    "eval/greedy_value": "discounted value of the greedy policy from the start, computed on the table, not sampled",
}
