"""RLHF with PPO: maximise score - kl_coef * KL(policy || reference), a critic in place of GRPO's groups.

A completion is an episode and a token an action. Tensors are [B, T], laid out as the input is, prompt and completion;
what stands where `action_mask` is False, even NaN, reaches nothing, and comes out as 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from align.batch import Prompts, Rollouts, epoch_order, means_of, rows_at
from align.config import OnError, PPOConfig
from align.critic import ActorCritic, Targets, last_actions, see
from align.critic import completion_advantages as completion_advantages
from align.importance import importance_metrics, importance_of
from align.logprobs import TokenLogprobs
from align.models import Reference, match_sampling
from align.regroup import share_of, state_of_all
from align.rewards import Reward, check_rewards, score_rollouts
from align.sampler import Sampler
from align.training import Trainer
from classic_rl.divergences import kl_k1, kl_k3
from classic_rl.losses import clipped_surrogate_loss, clipped_value_loss
from classic_rl.masked import check_same_shape, standardize

if TYPE_CHECKING:
    from accelerate import Accelerator


def kl_penalised_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, action_mask: Tensor, *, kl_coef: float
) -> Tensor:
    """Pay for every token: minus the KL penalty, and the score on the last real one.

        r_t = -kl_coef * (log pi - log pi_ref)_t + score * [t is the last action]

    Their sum over a completion has the mean E[score] - kl_coef * KL(policy || reference). As rewards, which are not
    differentiated, k1 has the KL's own policy gradient; as a loss its gradient would vanish.

    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2, its penalty taken per token.

    Args:
        scores: of each completion; that of a row without an action is paid to nobody. [B]
        logprobs, ref_logprobs: of the policy that sampled, and of the reference; constants. [B, T]
        action_mask: bool, the tokens that the policy chose. [B, T]
        kl_coef: weight of the KL, score per nat.

    Returns:
        The reward of each action, 0 elsewhere. [B, T]

    Raises:
        ValueError: if the shapes do not fit.

    >>> mask = torch.tensor([[False, True, True, False]])
    >>> logprobs = torch.tensor([[torch.nan, -1.0, -1.0, torch.nan]])
    >>> kl_penalised_rewards(torch.tensor([1.0]), logprobs, torch.full((1, 4), -3.0), mask, kl_coef=0.1)
    tensor([[ 0.0000, -0.2000,  0.8000,  0.0000]])
    """
    check_same_shape(logprobs=logprobs, ref_logprobs=ref_logprobs, action_mask=action_mask)
    check_same_shape(scores=scores, rows_of_action_mask=action_mask.any(dim=1))
    # where, not a product: what does not count may be NaN, and 0 * NaN is NaN.
    penalties = torch.where(action_mask, kl_coef * kl_k1(logprobs, ref_logprobs), 0.0)
    return (torch.where(last_actions(action_mask), scores[:, None], 0.0) - penalties).detach()


def adapted_kl_coef(kl_coef: float, kl: float, *, target: float, gain: float = 0.1) -> float:
    """Move the weight of the KL so that the KL comes near a target.

        kl_coef * (1 + gain * e),   e = clip((kl - target) / target, -0.2, 0.2)

    Source: Ziegler et al. 2019 (arXiv:1909.08593), section 2.2, with its gain.

    Args:
        kl_coef: the weight so far, above 0.
        kl: what was measured, in the unit of the target; here nats per completion.
        target: what it should be.
        gain: how fast the weight follows.

    >>> adapted_kl_coef(0.1, 9.0, target=6.0), adapted_kl_coef(0.1, 5.7, target=6.0)
    (0.10200000000000001, 0.0995)
    """
    error = (kl - target) / target
    return kl_coef * (1 + gain * min(max(error, -0.2), 0.2))


class Moments(NamedTuple):
    """Mean and spread of all numbers seen so far: their count, their mean, the sum of squares around it."""

    count: float = 0.0
    mean: float = 0.0
    square: float = 0.0

    def joined(self, more: Moments) -> Moments:
        """Take in further numbers.

        Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

        >>> Moments(2.0, 2.0, 2.0).joined(Moments(1.0, 5.0, 0.0))
        Moments(count=3.0, mean=3.0, square=8.0)
        """
        if more.count == 0:
            return self
        count, difference = self.count + more.count, more.mean - self.mean
        square = self.square + more.square + difference**2 * self.count * more.count / count
        return Moments(count, self.mean + difference * more.count / count, square)

    @property
    def std(self) -> float:
        """The unbiased standard deviation, 0 while there are fewer than two numbers."""
        return (self.square / max(self.count - 1, 1.0)) ** 0.5


class PPO:
    """The loop: sample, score, look at every token once without gradient, then epochs of minibatches, and again.

    policy: the module that is trained; the sampler shares its model.
    prompts, rewards: what is asked, and what judges the answers.
    reference: as `align.models.reference_of` gives it, needed if kl_coef is above 0; with 0 it is only measured.
    on_error: what a reward that fails on a sample does: "error" stops, "skip" leaves the sample out, "zero" gives 0.
    """

    def __init__(
        self,
        policy: ActorCritic,
        sampler: Sampler,
        prompts: Prompts,
        rewards: Sequence[Reward | Callable[..., Any]],
        config: PPOConfig,
        accelerator: Accelerator,
        *,
        reference: Reference | None = None,
        on_error: OnError = "error",
    ) -> None:
        if reference is None and config.token_rewards.kl_coef:
            raise ValueError(
                f"kl_coef is {config.token_rewards.kl_coef} and no reference was given: "
                "pass reference=reference_of(policy), or set kl_coef to 0"
            )
        if config.prompts_per_step < accelerator.num_processes:
            raise ValueError(
                f"prompts_per_step is {config.prompts_per_step}, fewer than the {accelerator.num_processes} processes: "
                "raise it, because the completions of a prompt stay in one process"
            )
        ahead = int(config.token_rewards.truncated == "bootstrapped")
        match_sampling(policy, prompts, sampler=sampler.config, config=config.sampling, look_ahead=ahead)
        policy.entropy = config.entropy_coef > 0
        self.config, self.sampler, self.prompts = config, sampler, prompts
        self.rewards = check_rewards(rewards, prompts.columns)
        self.accelerator, self.reference = accelerator, reference
        self.importance = importance_of(config.importance, sampler.config)
        self.trainer = Trainer(policy, config.optimizer, accelerator, config.steps)
        self.on_error: OnError = on_error
        self.step, self.total_steps = 0, config.steps
        self.update = 0  # updates already taken on the current rollouts
        self.position = 0  # prompts drawn before the current rollouts, epochs laid end to end
        self.kl_coef = config.token_rewards.kl_coef
        self.scores = Moments()
        self.rollouts: Rollouts | None = None

    def steps(self) -> Iterator[dict[str, float]]:
        """Yield the metrics of each optimizer step, from the current step to the last."""
        while self.step < self.total_steps:
            started = time.perf_counter()
            sampled: dict[str, float] = {}
            if self.update == 0:
                rollouts = self._sample()
                sampled["time/sample"] = time.perf_counter() - started
                self.rollouts, described = self._look_at(rollouts)
                sampled |= described
            assert self.rollouts is not None
            updated = self._learn(self.rollouts)
            self.step += 1
            self.update += 1
            limit, updates = self.config.kl_limit, self.config.epochs * self.config.minibatches
            # approx_kl is a mean over all processes, so all of them leave together
            if self.update == updates or (limit is not None and updated["policy/approx_kl"] > limit):
                self.update, self.position = 0, self.position + self.config.prompts_per_step
            elapsed = time.perf_counter() - started
            if sampled:
                sampled["tokens/per_second"] = sampled["tokens/generated"] / elapsed
            yield {**sampled, **updated, "time/step": elapsed}

    def _sample(self) -> Rollouts:
        """Sample and score this process's prompts."""
        self.sampler.load_weights(self.trainer.policy, self.step)
        numbers = list(range(self.config.prompts_per_step))
        mine = numbers[self.accelerator.process_index :: self.accelerator.num_processes]
        prompts, size, seed = self._prompts_of(mine), self.config.group_size, self.config.seed
        with self.accelerator.autocast():  # the arithmetic of the trainer, or the two would disagree
            rollouts = self.sampler.sample(prompts, group_size=size, seed=seed, step=self.step, numbers=mine)
        if rollouts.weight_version != self.step:
            raise RuntimeError(
                f"the sampler's weights are of step {rollouts.weight_version}, the policy is at step {self.step}: "
                "load_weights did not take effect, and training would be off-policy without a correction"
            )
        return score_rollouts(rollouts, self.rewards, on_error=self.on_error)

    def _prompts_of(self, numbers: Sequence[int]) -> Prompts:
        rows = rows_at(self.position, max(numbers) + 1, len(self.prompts), self.config.seed)
        return self.prompts.select([rows[number] for number in numbers])

    def _look_at(self, rollouts: Rollouts) -> tuple[Rollouts, dict[str, float]]:
        """Note what the updates need of every token, and describe it; the KL's weight is adapted for the next ones."""
        config, critic = self.config.token_rewards, self.config.critic
        cut = ~rollouts.terminated if config.truncated == "bootstrapped" else None
        seen = see(
            self.trainer.unwrapped,
            self.reference,
            rollouts.sequences,
            self.accelerator,
            cut=self.trainer.cut,
            look_ahead=cut is not None,
        )
        action_mask = rollouts.sequences.action_mask & ~rollouts.rewards.isnan()[:, None]
        if config.truncated == "left-out":
            action_mask = action_mask & rollouts.terminated[:, None]

        scores = self._scores(rollouts)
        if cut is not None:
            scores = torch.where(cut, 0.0, scores)  # the value of the state that they led to is their pay
        token_rewards = kl_penalised_rewards(
            scores, seen.logprobs, seen.ref_logprobs, action_mask, kl_coef=self.kl_coef
        )
        advantages = completion_advantages(
            token_rewards, seen.values, action_mask, cut, seen.final_values, gamma=critic.gamma, lam=critic.lam
        )
        of_advantages = self._moments(advantages[action_mask])
        whitened = standardize(advantages, action_mask, mean=of_advantages.mean, std=of_advantages.std)
        logprobs, values, returns = (
            torch.where(action_mask, each, 0.0) for each in (seen.logprobs, seen.values, advantages + seen.values)
        )
        weighed = None if self.importance is None else self.importance(seen.logprobs, rollouts.logprobs, action_mask)
        if weighed is not None:  # a weight is not negative, so weighing the advantage weighs the clipped surrogate
            whitened = whitened * weighed.weights
        targets = Targets(action_mask, logprobs, values, whitened, returns)
        described = self._describe(rollouts, targets, token_rewards, seen.ref_logprobs)
        if weighed is not None:
            sums = self.trainer.sum_over_processes(weighed.sums(action_mask) | {"tokens": action_mask.sum()})
            described |= importance_metrics(sums, sums["tokens"])
        if self.reference is not None:
            described["kl/coef"] = self.kl_coef
            if config.kl_target is not None:
                self.kl_coef = adapted_kl_coef(self.kl_coef, described["kl/completion"], target=config.kl_target)
        return replace(rollouts, notes=targets._asdict()), described

    def _scores(self, rollouts: Rollouts) -> Tensor:
        """Normalise by the scores of all rollouts so far, these among them; clip; fine a missing EOS. [B]"""
        config, scores = self.config.token_rewards, rollouts.rewards
        if config.normalise_scores:
            self.scores = self.scores.joined(self._moments(scores[~scores.isnan()]))
            scores = standardize(scores, mean=self.scores.mean, std=self.scores.std)
        if config.score_clip is not None:
            scores = scores.clamp(-config.score_clip, config.score_clip)
        return scores - config.missing_eos_penalty * ~rollouts.terminated

    def _moments(self, numbers: Tensor) -> Moments:
        """Return the moments of numbers of which each process has some. [n]"""
        numbers = numbers.double()
        sums = self.trainer.sum_over_processes({"count": torch.tensor(len(numbers)), "total": numbers.sum()})
        mean = sums["total"] / max(sums["count"], 1.0)
        square = self.trainer.sum_over_processes({"square": (numbers - mean).square().sum()})["square"]
        return Moments(sums["count"], mean, square)

    def _learn(self, rollouts: Rollouts) -> dict[str, float]:
        """Take one optimizer step on a minibatch of the rollouts."""
        config, targets = self.config, Targets(**rollouts.notes)
        mine = self._minibatch(rollouts, targets)
        chosen = replace(rollouts.sequences, action_mask=targets.action_mask).select(mine)
        denominator = self.trainer.sum_over_processes({"count": chosen.action_mask.sum()})["count"]

        def loss_of(said: TokenLogprobs, micro_batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            assert said.values is not None
            now, width = said.logprobs.detach(), said.logprobs.shape[1]
            batch = targets.select(mine[micro_batch], width, now.device)
            mask = batch.action_mask
            # The weights that sampled are still the policy's in the first update: the ratio is 1 without rounding.
            old_logprobs = now if self.update == 0 else batch.old_logprobs
            loss = clipped_surrogate_loss(
                said.logprobs, old_logprobs, batch.advantages, clip_low=config.clip_low, clip_high=config.clip_high
            )
            value_loss = clipped_value_loss(said.values, batch.values, batch.returns, clip=config.critic.value_clip)
            loss = loss + config.critic.value_coef * value_loss
            if said.entropy is not None:
                loss = loss - config.entropy_coef * said.entropy
            ratio = torch.exp(now - old_logprobs)
            above, below = ratio > 1 + config.clip_high, ratio < 1 - config.clip_low
            sums = {
                "tokens": mask.sum(),
                "clipped": ((above & (batch.advantages > 0)) | (below & (batch.advantages < 0)))[mask].sum(),
                "kl": kl_k3(old_logprobs, now)[mask].sum(),
                "value": value_loss.detach()[mask].sum(),
            }
            return loss[mask].sum() / max(denominator, 1.0), sums

        sums = self.trainer.step(chosen, loss_of, step=self.step)
        tokens = max(sums.get("tokens", 0.0), 1.0)
        return {
            **{f"optim/{name}": sums[name] for name in ("loss", "grad_norm", "learning_rate")},
            "tokens/trained": sums.get("tokens", 0.0),
            "policy/clip_fraction": sums.get("clipped", 0.0) / tokens,
            "policy/approx_kl": sums.get("kl", 0.0) / tokens,
            "value/loss": sums.get("value", 0.0) / tokens,
        }

    def _minibatch(self, rollouts: Rollouts, targets: Targets) -> Tensor:
        """Return this process's rows of the current minibatch, which is an equal share of everybody's completions.

        The shares are a pure function of the seed and the step at which the epoch began. [b]
        """
        epoch_began, size = self.step - self.update % self.config.minibatches, self.config.group_size
        order = epoch_order(self.config.prompts_per_step * size, self.config.seed, epoch_began)
        chosen = set(order[self.update % self.config.minibatches :: self.config.minibatches].tolist())
        everyone = [number * size + sample for number in rollouts.numbers for sample in range(size)]
        learned = targets.action_mask.any(dim=1).tolist()
        rows = [row for row, name in enumerate(everyone) if name in chosen and learned[row]]
        return torch.tensor(rows, dtype=torch.int64)

    def _describe(
        self, rollouts: Rollouts, targets: Targets, token_rewards: Tensor, ref_logprobs: Tensor
    ) -> dict[str, float]:
        """Return the metrics of rollouts and of what was seen of them, over all processes."""
        mask = targets.action_mask
        logprobs, ref_logprobs = targets.old_logprobs[mask], ref_logprobs[mask]
        local = {
            "actions": mask.sum(),
            "paid": mask.any(dim=1).sum(),
            "gap": (logprobs - rollouts.logprobs[mask]).abs().sum(),
            "objective": token_rewards.sum(),
            "k1": kl_k1(logprobs, ref_logprobs).sum(),
            "k3": kl_k3(logprobs, ref_logprobs).sum(),
        }
        sums = self.trainer.sum_over_processes(rollouts.sums() | local)
        actions, completions = max(sums["actions"], 1.0), max(sums["paid"], 1.0)
        returns, errors = (self._moments(x[mask]) for x in (targets.returns, targets.returns - targets.values))
        described = {
            **means_of(sums),
            "policy/sampler_gap": sums["gap"] / actions,
            "returns/mean": returns.mean,
            "returns/objective": sums["objective"] / completions,
            "value/explained_variance": 1 - (errors.std / returns.std) ** 2 if returns.std > 1e-6 else 0.0,
        }
        if self.reference is not None:
            described |= {"kl/reference": sums["k3"] / actions, "kl/completion": sums["k1"] / completions}
        return described

    def examples(self) -> list[dict[str, Any]]:
        """Return this process's last rollouts as plain values, with the mean advantage of their tokens."""
        if self.rollouts is None:
            return []
        targets = Targets(**self.rollouts.notes)
        advantages = (targets.advantages.sum(dim=1) / targets.action_mask.sum(dim=1).clamp(min=1)).tolist()
        return [{**e, "advantage": a} for e, a in zip(self.rollouts.examples(), advantages, strict=True)]

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs; every process calls it, and all return the same.

        Rollouts whose updates are not all taken are in it, of all processes, so another number of them may go on.
        """
        pending = self.rollouts if self.update else None
        return {
            "trainer": self.trainer.state(),
            "step": self.step,
            "update": self.update,
            "position": self.position,
            "kl_coef": self.kl_coef,
            "scores": list(self.scores),
            **state_of_all(pending, self.trainer.gathered, self._prompts_of),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.trainer.load_state(state["trainer"])
        self.step, self.update, self.position = state["step"], state["update"], state["position"]
        self.kl_coef, self.scores = state["kl_coef"], Moments(*state["scores"])
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.rollouts = share_of(state, self._prompts_of, rank, processes)
