"""What every metric means: the estimator, over what it is taken, and its unit. A test fails on one that is not here.

Means are over the whole step, all processes and micro-batches together: sums over counts, never means of means.
"""

METRICS: dict[str, str] = {
    "reward/mean": "mean total reward of the rollout's completions, those without a reward left out",
    "reward/std": "unbiased standard deviation of the total reward over the rollout's completions",
    "reward/<name>": "mean of one reward function over the completions that it applies to, before its weight",
    "group/silent": "share of groups whose advantages are all 0, from which nothing can be learned",
    "completion/length": "mean tokens of a completion, its EOS included",
    "completion/truncated": "share of completions that max_new_tokens cut before an EOS",
    "policy/entropy": "mean over sampled tokens of the entropy of the distribution they were drawn from, nats",
    "policy/sampler_gap": "mean over trained tokens of |log-prob of the trainer - of the sampler|, same weights, nats",
    "policy/clip_fraction": "share of trained tokens that are clipped: their advantage is not 0, but their gradient is",
    "kl/reference": "k3 estimate of KL(policy || reference), mean over trained tokens, nats per token",
    "preference/accuracy": "share of pairs whose chosen answer has the higher reward, a tie counted as half a pair",
    "preference/margin": "mean over pairs of the chosen minus the rejected answer's reward",
    "reward_model/mean": "mean score of chosen and rejected answers; nothing but centring holds it anywhere",
    "reward_model/calibration_error": "mean over pairs of |share right - mean sigmoid|margin|| in their bin of ten",
    "optim/loss": "the loss of the step; in RL its value says little, its gradient is what counts",
    "optim/grad_norm": "global norm of the gradient before clipping",
    "optim/learning_rate": "learning rate of the step",
    "tokens/generated": "completion tokens sampled in the step",
    "tokens/trained": "tokens whose log-probability the step's gradient went through",
    "tokens/per_second": "completion tokens sampled and learned from, per second of the whole step",
    "time/step": "seconds of the step: sampling, rewards and update",
    "time/sample": "seconds of sampling and scoring",
    "eval/<name>": "the metric of that name on held-out data; eval/loss is the mean loss per token",
}


def described(name: str) -> str | None:
    """Return what a metric means, or None if it is not known; a reward's part and an evaluation have patterns.

    >>> described("reward/exact_answer")
    'mean of one reward function over the completions that it applies to, before its weight'
    """
    group, _, _ = name.partition("/")
    return METRICS.get(name) or METRICS.get(f"{group}/<name>")
