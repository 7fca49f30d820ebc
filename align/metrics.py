"""What every metric means: the estimator, over what it is taken, and its unit. A test fails on one that is not here.

Means are over the whole step, all processes and micro-batches together: sums over counts, never means of means.
"""

METRICS: dict[str, str] = {
    "reward/mean": "mean total reward of the rollout's completions, those without a reward left out",
    "reward/std": "unbiased standard deviation of the total reward over the rollout's completions",
    "reward/<name>": "mean of one reward function over the completions that it applies to, before its weight",
    "reward/faults": "share of completions at which a reward failed; not there where that stops the run",
    "group/silent": "share of groups whose advantages are all 0, from which nothing can be learned",
    "completion/length": "mean tokens of a completion, its EOS included",
    "completion/truncated": "share of completions that max_new_tokens cut before an EOS",
    "policy/entropy": "mean over sampled tokens of the entropy of the distribution they were drawn from, nats",
    "policy/sampler_gap": "mean over trained tokens of |log-prob of the trainer - of the sampler|, same weights, nats",
    "policy/importance_weight": "mean over trained tokens of the weight policy / sampler, within its bounds",
    "policy/importance_cut": "share of trained tokens whose ratio policy / sampler lay outside its bounds",
    "policy/clip_fraction": "share of trained tokens that are clipped: their advantage is not 0, but their gradient is",
    "policy/approx_kl": "k3 estimate of KL(policy that sampled || policy), mean over trained tokens, nats per token",
    "kl/completion": "k1 estimate of KL(policy || reference): summed over a completion, mean over completions, nats",
    "kl/coef": "weight of the KL in the reward of these rollouts, score per nat",
    "returns/mean": "mean over actions of what the critic is to predict: the lambda-return of the token rewards",
    "returns/objective": "mean over completions of the sum of their token rewards: score minus kl/coef * KL",
    "value/explained_variance": "1 - variance of (return - value) / variance of returns, over actions, before learning",
    "value/loss": "mean over trained tokens of the value loss, before its weight",
    "kl/reference": "k3 estimate of KL(policy || reference), mean over trained tokens, nats per token",
    "preference/accuracy": "share of pairs whose chosen answer has the higher reward, a tie counted as half a pair",
    "preference/margin": "mean over pairs of the chosen minus the rejected answer's reward",
    "preference/chosen_reward": "mean of beta * log(policy / reference) of chosen or liked answers, nats times beta",
    "preference/rejected_reward": "the same mean of rejected or disliked answers; without a reference, of log(policy)",
    "kl/reference_point": "KTO's reference point: mean log(policy / reference) of others' answers, at least 0, nats",
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
    "eval/<name>": "the metric of that name on held-out data; eval/loss is the mean loss: of a token in SFT, of a pair "
    "in DPO and for reward models, of an answer in KTO, whose reference point is that of the held-out answers",
}


def described(name: str) -> str | None:
    """Return what a metric means, or None if it is not known; a reward's part and an evaluation have patterns.

    >>> described("reward/exact_answer")
    'mean of one reward function over the completions that it applies to, before its weight'
    """
    group, _, _ = name.partition("/")
    return METRICS.get(name) or METRICS.get(f"{group}/<name>")
