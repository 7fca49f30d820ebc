"""RLHF with PPO: maximise score - kl_coef * KL(policy || reference), a value head in place of GRPO's groups.

A completion is an episode and a token an action. Tensors are [B, T], laid out as the input is, prompt and completion;
what stands where `action_mask` is False, even NaN, reaches nothing, and comes out as 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from align.aggregate import per_token
from align.batch import Prompts, Rollouts, Sequences, epoch_order, means_of, rows_at
from align.config import PPOConfig
from align.critic import ActorCritic
from align.experience import Experience, Seen, Targets
from align.logprobs import TokenLogprobs
from align.models import Reference, match_sampling
from align.rewards import Reward, check_rewards, score_rollouts
from align.sampler import Sampler
from align.training import Trainer, cut_by_tokens
from classic_rl.divergences import kl_k1, kl_k3
from classic_rl.losses import clipped_surrogate_loss, clipped_value_loss
from classic_rl.masked import check_same_shape, standardize
from classic_rl.returns import generalized_advantages

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


def last_actions(action_mask: Tensor) -> Tensor:
    """Return True at the last action of each row. [B, T] -> [B, T]"""
    later = action_mask.flip(-1).cumsum(-1).flip(-1)
    return action_mask & (later == 1)


def completion_advantages(
    token_rewards: Tensor,
    values: Tensor,
    action_mask: Tensor,
    truncated: Tensor | None = None,
    final_values: Tensor | None = None,
    *,
    gamma: float,
    lam: float,
) -> Tensor:
    """Estimate the advantage of each token with GAE, a completion being an episode.

    The last action terminates it; where `truncated` is set it is cut instead, and bootstraps from the value of the
    state that it led to. Such a completion should carry no score: it would be paid once for what it wrote and once
    more for what it might have gone on to write.

    Source: Schulman et al. 2016 (arXiv:1506.02438), by `classic_rl.returns.generalized_advantages`.

    Args:
        token_rewards: as `kl_penalised_rewards` gives them. [B, T]
        values: V(s_t), of the state before token t. [B, T]
        action_mask: bool, one run of True a row. [B, T]
        truncated: bool; None says that no completion was cut. [B]
        final_values: V of the state after the last action, read where `truncated` is set. [B]
        gamma, lam: as in `generalized_advantages`.

    Returns:
        A_t, not normalised, 0 where nothing counts. [B, T]. With `values` added they are the critic's targets.

    Raises:
        ValueError: if the shapes do not fit, a row has actions in several runs, or `final_values` is missing.

    >>> mask = torch.tensor([[False, True, True]])
    >>> rewards, values = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[9.0, 0.5, 0.8]])
    >>> completion_advantages(rewards, values, mask, gamma=1.0, lam=0.5)
    tensor([[0.0000, 0.4000, 0.2000]])
    """
    check_same_shape(token_rewards=token_rewards, values=values, action_mask=action_mask)
    if (action_mask & ~F.pad(action_mask[:, :-1], (1, 0))).sum(dim=1).gt(1).any():
        raise ValueError("a row has actions in several runs: the state after a gap has no value; split it into rows")
    if truncated is None:
        truncated = torch.zeros_like(action_mask[:, 0])
    elif final_values is None:
        raise ValueError("truncated completions bootstrap from final_values, which is None: pass it, or no truncated")
    last = last_actions(action_mask)
    rewards, values = (torch.where(action_mask, x, 0.0) for x in (token_rewards, values))
    next_values = F.pad(values[:, 1:], (0, 1))
    if final_values is not None:
        next_values = torch.where(last, final_values[:, None].to(values.dtype), next_values)
    ended, cut = last & ~truncated[:, None], last & truncated[:, None]
    advantages = generalized_advantages(rewards, values, next_values, ended, cut, gamma=gamma, lam=lam)
    return torch.where(action_mask, advantages, 0.0)


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

    def joined(self, count: float, total: float, square: float) -> Moments:
        """Take in further numbers: how many, their sum, the sum of squares around their own mean.

        Source: Chan, Golub & LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances".

        >>> Moments().joined(2, 4.0, 2.0).joined(1, 5.0, 0.0)
        Moments(count=3.0, mean=3.0, square=8.0)
        """
        if count == 0:
            return self
        together, difference = self.count + count, total / count - self.mean
        mean = self.mean + difference * count / together
        return Moments(together, mean, self.square + square + difference**2 * self.count * count / together)

    @property
    def std(self) -> float:
        """The unbiased standard deviation, 0 while there are fewer than two numbers."""
        return (self.square / (self.count - 1)) ** 0.5 if self.count > 1 else 0.0


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
        on_error: Literal["error", "skip", "zero"] = "error",
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
        match_sampling(policy, sampler=sampler.config.temperature, config=config.sampling.temperature)
        policy.entropy = config.entropy_coef > 0
        self.config, self.sampler, self.prompts = config, sampler, prompts
        self.rewards = check_rewards(rewards, prompts.columns)
        self.accelerator, self.reference = accelerator, reference
        self.trainer = Trainer(policy, config.optimizer, accelerator, config.steps)
        self.on_error: Literal["error", "skip", "zero"] = on_error
        self.step, self.total_steps = 0, config.steps
        self.update = 0  # updates already taken on the current rollouts
        self.position = 0  # prompts drawn before the current rollouts, epochs laid end to end
        self.kl_coef = config.token_rewards.kl_coef
        self.scores = Moments()
        self.experience: Experience | None = None

    def steps(self) -> Iterator[dict[str, float]]:
        """Yield the metrics of each optimizer step, from the current step to the last."""
        while self.step < self.total_steps:
            started = time.perf_counter()
            sampled: dict[str, float] = {}
            if self.update == 0:
                rollouts = self._sample()
                sampled["time/sample"] = time.perf_counter() - started
                self.experience, described = self._look_at(rollouts)
                sampled |= described
            assert self.experience is not None
            updated = self._learn(self.experience)
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

    def _look_at(self, rollouts: Rollouts) -> tuple[Experience, dict[str, float]]:
        """Turn rollouts into what the updates need, and describe both; the KL's weight is adapted for the next ones."""
        config = self.config.token_rewards
        cut = ~rollouts.terminated if config.truncated == "bootstrapped" else None
        seen = self._see(rollouts.sequences, look_ahead=cut is not None)
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
            token_rewards,
            seen.values,
            action_mask,
            cut,
            seen.final_values,
            gamma=self.config.critic.gamma,
            lam=self.config.critic.lam,
        )
        logprobs, values, returns = (
            torch.where(action_mask, each, 0.0) for each in (seen.logprobs, seen.values, advantages + seen.values)
        )
        whitened = self._whitened(advantages, action_mask)
        experience = Experience(rollouts, Targets(action_mask, logprobs, values, whitened, returns))
        described = self._describe(experience, token_rewards, seen.ref_logprobs)
        if self.reference is not None:
            described["kl/coef"] = self.kl_coef
            if config.kl_target is not None:
                self.kl_coef = adapted_kl_coef(self.kl_coef, described["kl/completion"], target=config.kl_target)
        return experience, described

    @torch.no_grad()
    def _see(self, sequences: Sequences, *, look_ahead: bool) -> Seen:
        """Ask policy, value head and reference for every action, in micro-batches.

        look_ahead: also for the value of the state after the last action. A token that stands for any is put there:
            a state is what came before its token, so which one makes no difference.
        """
        lengths, mask = sequences.lengths, sequences.action_mask
        if look_ahead:
            after = torch.arange(mask.shape[1] + 1) == lengths[:, None]
            sequences = Sequences(F.pad(sequences.input_ids, (0, 1)), lengths + 1, F.pad(mask, (0, 1)) | after)
        parts: list[tuple[Tensor, list[Tensor]]] = []
        for rows in cut_by_tokens(sequences.lengths, self.config.optimizer.tokens_per_micro_batch):
            batch = sequences.select(rows).to(self.accelerator.device)
            said: TokenLogprobs = self.trainer.unwrapped(batch.input_ids, batch.action_mask)
            assert said.values is not None
            with self.accelerator.autocast():
                ref_logprobs = self.reference(batch.input_ids, batch.action_mask) if self.reference else said.logprobs
            parts.append((rows, [each.cpu() for each in (said.logprobs, said.values, ref_logprobs)]))
        whole = [torch.zeros(sequences.input_ids.shape, dtype=each.dtype) for each in parts[0][1]]
        for rows, tensors in parts:
            for to, each in zip(whole, tensors, strict=True):
                to[rows, : each.shape[1]] = each
        width = mask.shape[1]
        final_values = whole[1].gather(1, lengths[:, None])[:, 0] if look_ahead else None
        logprobs, values, ref_logprobs = (torch.where(mask, each[:, :width], 0.0) for each in whole)
        return Seen(logprobs, values, ref_logprobs, final_values)

    def _scores(self, rollouts: Rollouts) -> Tensor:
        """Normalise by the scores of all rollouts so far, these among them; clip; fine a missing EOS. [B]"""
        config, scores = self.config.token_rewards, rollouts.rewards
        if config.normalise_scores:
            valid = scores[~scores.isnan()].double()
            told = {"count": torch.tensor(len(valid)), "total": valid.sum()}
            sums = self.trainer.sum_over_processes(told)
            mean = sums["total"] / max(sums["count"], 1.0)
            square = self.trainer.sum_over_processes({"square": (valid - mean).square().sum()})
            self.scores = self.scores.joined(**sums, **square)
            scores = standardize(scores, mean=self.scores.mean, std=self.scores.std)
        if config.score_clip is not None:
            scores = scores.clamp(-config.score_clip, config.score_clip)
        return scores - config.missing_eos_penalty * ~rollouts.terminated

    def _whitened(self, advantages: Tensor, action_mask: Tensor) -> Tensor:
        """Give the real actions of the step, over all processes, advantages of mean 0 and standard deviation 1."""
        counted = advantages[action_mask].double()
        told = {"count": action_mask.sum(), "total": counted.sum()}
        sums = self.trainer.sum_over_processes(told)
        mean = sums["total"] / max(sums["count"], 1.0)
        square = self.trainer.sum_over_processes({"square": (counted - mean).square().sum()})["square"]
        std = (square / max(sums["count"] - 1, 1.0)) ** 0.5
        return standardize(advantages, action_mask, mean=mean, std=std)

    def _learn(self, experience: Experience) -> dict[str, float]:
        """Take one optimizer step on a minibatch of the experience."""
        config, mine = self.config, self._minibatch(experience)
        chosen = experience.sequences.select(mine)
        denominator = self.trainer.sum_over_processes({"count": chosen.action_mask.sum()})["count"]

        def loss_of(said: TokenLogprobs, micro_batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            assert said.values is not None
            now, width = said.logprobs.detach(), said.logprobs.shape[1]
            batch = experience.targets.select(mine[micro_batch], width, now.device)
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
            return per_token.mean(loss, mask, denominator=denominator), sums

        sums = self.trainer.step(chosen, loss_of, step=self.step)
        tokens = max(sums.get("tokens", 0.0), 1.0)
        return {
            **{f"optim/{name}": sums[name] for name in ("loss", "grad_norm", "learning_rate")},
            "tokens/trained": sums.get("tokens", 0.0),
            "policy/clip_fraction": sums.get("clipped", 0.0) / tokens,
            "policy/approx_kl": sums.get("kl", 0.0) / tokens,
            "value/loss": sums.get("value", 0.0) / tokens,
        }

    def _minibatch(self, experience: Experience) -> Tensor:
        """Return this process's rows of the current minibatch, which is an equal share of everybody's completions.

        The shares are a pure function of the seed and the step at which the epoch began. [b]
        """
        epoch_began, size = self.step - self.update % self.config.minibatches, self.config.group_size
        order = epoch_order(self.config.prompts_per_step * size, self.config.seed, epoch_began)
        chosen = set(order[self.update % self.config.minibatches :: self.config.minibatches])
        everyone = [number * size + sample for number in experience.rollouts.numbers for sample in range(size)]
        learned = experience.targets.action_mask.any(dim=1).tolist()
        rows = [row for row, name in enumerate(everyone) if name in chosen and learned[row]]
        return torch.tensor(rows, dtype=torch.int64)

    def _describe(self, experience: Experience, token_rewards: Tensor, ref_logprobs: Tensor) -> dict[str, float]:
        """Return the metrics of rollouts and of what was seen of them, over all processes."""
        rollouts, targets = experience.rollouts, experience.targets
        mask, logprobs = targets.action_mask, targets.old_logprobs[targets.action_mask]
        returns, ref_logprobs = targets.returns[mask].double(), ref_logprobs[mask]
        errors = returns - targets.values[mask]
        local = rollouts.sums() | {
            "counted": mask.sum(),
            "rows": mask.any(dim=1).sum(),
            "gap": (logprobs - rollouts.logprobs[mask]).abs().sum(),
            "objective": token_rewards.sum(),
            "k1": kl_k1(logprobs, ref_logprobs).sum(),
            "k3": kl_k3(logprobs, ref_logprobs).sum(),
            "returns": returns.sum(),
            "returns squared": returns.square().sum(),
            "errors": errors.sum(),
            "errors squared": errors.square().sum(),
        }
        sums = self.trainer.sum_over_processes(local)
        actions, completions = max(sums["counted"], 1.0), max(sums["rows"], 1.0)
        of_returns = sums["returns squared"] / actions - (sums["returns"] / actions) ** 2
        of_errors = sums["errors squared"] / actions - (sums["errors"] / actions) ** 2
        described = {
            **means_of(sums),
            "policy/sampler_gap": sums["gap"] / actions,
            "returns/mean": sums["returns"] / actions,
            "returns/objective": sums["objective"] / completions,
            "value/explained_variance": 1 - of_errors / of_returns if of_returns > 1e-12 else 0.0,
        }
        if self.reference is not None:
            described |= {"kl/reference": sums["k3"] / actions, "kl/completion": sums["k1"] / completions}
        return described

    def examples(self) -> list[dict[str, Any]]:
        """Return this process's last rollouts as plain values, with the mean advantage of their tokens."""
        if self.experience is None:
            return []
        targets = self.experience.targets
        advantages = (targets.advantages.sum(dim=1) / targets.action_mask.sum(dim=1).clamp(min=1)).tolist()
        return [{**e, "advantage": a} for e, a in zip(self.experience.rollouts.examples(), advantages, strict=True)]

    def state(self) -> dict[str, Any]:
        """Return all that a resumed run needs; every process calls it, and all return the same.

        Experience whose updates are not all taken is in it, of all processes, so another number of them may go on.
        """
        pending = None
        if self.update != 0 and self.experience is not None:
            states = self.trainer.gathered([self.experience.state()])
            pending = Experience.joined([self._restored(each) for each in states]).state()
        return {
            "trainer": self.trainer.state(),
            "step": self.step,
            "update": self.update,
            "position": self.position,
            "kl_coef": self.kl_coef,
            "scores": list(self.scores),
            "experience": pending,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.trainer.load_state(state["trainer"])
        self.step, self.update, self.position = state["step"], state["update"], state["position"]
        self.kl_coef, self.scores = state["kl_coef"], Moments(*state["scores"])
        self.experience = None
        if state["experience"] is not None:
            whole = self._restored(state["experience"])
            mine = range(len(whole.rollouts.numbers))[self.accelerator.process_index :: self.accelerator.num_processes]
            self.experience = whole.groups(mine)

    def _restored(self, state: dict[str, Any]) -> Experience:
        prompts = self._prompts_of(state["rollouts"]["numbers"])
        return Experience(Rollouts.from_state(state["rollouts"], prompts), Targets(**state["targets"]))
