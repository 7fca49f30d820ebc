"""GRPO: completions of one prompt judge each other, so that no value model is needed.

A surrogate is a function (logprobs [B, T], old_logprobs [B, T], advantages [B], action_mask [B, T]) -> loss [B, T], 0
where the mask is False: what stands there, even NaN, reaches neither the loss nor its gradient. It is passed in, not
named: others are in `align.surrogates`, averages in `align.aggregate`. k3 without the ratio is `kl_coef * kl_k3(...)`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from align.aggregate import Average, per_token
from align.batch import Prompts, Rollouts, means_of, rows_at
from align.config import GRPOConfig, OnError
from align.importance import importance_metrics, importance_of
from align.logprobs import TokenLogprobs
from align.models import Reference, match_sampling
from align.regroup import groups_of, joined, share_of, state_of_all
from align.reward_faults import penalised
from align.rewards import Reward, check_rewards, score_rollouts
from align.sampler import Sampler
from align.training import Trainer
from classic_rl.divergences import kl_k3
from classic_rl.losses import clipped_surrogate_loss
from classic_rl.masked import check_same_shape

if TYPE_CHECKING:
    from accelerate import Accelerator


def centre_by_group(rewards: Tensor, group_size: int) -> Tensor:
    """Subtract from each reward the mean of its group: A_i = r_i - mean(r_1 ... r_G).

    Equal rewards, or fewer than two, carry no signal and give exactly 0. As the mean includes r_i itself, the expected
    gradient is (G - 1) / G of the policy gradient, and unbiased but for that factor.

    Source: Liu et al. 2025 (arXiv:2503.20783), Dr. GRPO.

    Args:
        rewards: one per completion, group after group; NaN is a missing one, left out of the mean. [B = N * G]
        group_size: G, at least 2.

    Returns:
        Advantages, 0 where the reward is missing. [B]

    Raises:
        ValueError: if rewards are not whole groups, or group_size is below 2.

    >>> centre_by_group(torch.tensor([1.0, 0.0, 0.1, 0.1]), group_size=2)
    tensor([ 0.5000, -0.5000,  0.0000,  0.0000])
    """
    return _centred(rewards, group_size)[0].flatten()


def standardize_by_group(rewards: Tensor, group_size: int, *, eps: float = 1e-4) -> Tensor:
    """Centre, and divide by the group's standard deviation: A_i = (r_i - mean) / (std + eps), std unbiased.

    Source: Shao et al. 2024 (arXiv:2402.03300); eps, not in the paper, bounds what nearly equal rewards give.
    Otherwise as `centre_by_group`.

    >>> standardize_by_group(torch.tensor([1.0, 2.0, 3.0, 0.1, 0.1, 0.1]), group_size=3, eps=0.0)
    tensor([-1.,  0.,  1.,  0.,  0.,  0.])
    """
    centred, counts = _centred(rewards, group_size)
    std = (centred.square().sum(dim=1, keepdim=True) / (counts - 1).clamp(min=1)).sqrt()
    return torch.where(centred == 0, 0.0, centred / (std + eps)).flatten()


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    action_mask: Tensor,
    *,
    ref_logprobs: Tensor | None = None,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    kl_coef: float = 0.0,
) -> Tensor:
    """Clip the ratio of each token, ratio_t = pi / pi_old, and optionally hold the policy near a reference.

        L_t = -min(ratio_t * A, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A) + kl_coef * ratio_t * k3_t

    The ratio before k3, which the paper has not, gives the KL's own gradient: see `ratio_weighted_k3`.

    Source: Shao et al. 2024 (arXiv:2402.03300); two bounds: Yu et al. 2025 (arXiv:2503.14476).

    Args:
        logprobs, old_logprobs: log-probabilities now, and of the policy that sampled. [B, T]
        advantages: of each completion. [B]
        action_mask: bool, the tokens that the policy chose. [B, T]
        ref_logprobs: of the reference, read if kl_coef is not 0. [B, T]
        clip_low, clip_high: how far below and above 1 the ratio still earns.
        kl_coef: weight of the KL to the reference.

    Returns:
        The loss of each token. [B, T]

    Raises:
        ValueError: if shapes do not fit, or kl_coef comes without ref_logprobs.

    >>> mask = torch.tensor([[True, True, False]])
    >>> grpo_loss(torch.tensor([[0.5, 2.0, torch.nan]]).log(), torch.zeros(1, 3), torch.tensor([-1.0]), mask)
    tensor([[0.8000, 2.0000, -0.0000]])
    """
    loss = clipped_surrogate_loss(
        *counted(logprobs, old_logprobs, advantages, action_mask), clip_low=clip_low, clip_high=clip_high
    )
    if kl_coef == 0:
        return loss
    if ref_logprobs is None:
        raise ValueError(f"kl_coef is {kl_coef} but ref_logprobs is None: pass ref_logprobs, or kl_coef=0.")
    return loss + kl_coef * ratio_weighted_k3(logprobs, old_logprobs, ref_logprobs, action_mask)


def ratio_weighted_k3(logprobs: Tensor, old_logprobs: Tensor, ref_logprobs: Tensor, action_mask: Tensor) -> Tensor:
    """Estimate KL(policy || reference) per token without bias, and its gradient too.

        L_t = pi / pi_old * (ref / pi - 1 - log(ref / pi))

    The ratio is not clipped and is differentiated: the mean under pi_old is the KL, at the states it visits.

    Source: DeepSeek-AI 2025 (arXiv:2512.02556), its unbiased KL estimate. Otherwise as `grpo_loss`.
    """
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, action_mask=action_mask)
    logprobs, old_logprobs, ref_logprobs = _zero_uncounted(action_mask, logprobs, old_logprobs, ref_logprobs)
    return torch.exp(logprobs - old_logprobs.detach()) * kl_k3(logprobs, ref_logprobs)


def _centred(rewards: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Rewards minus their group's mean [N, G], 0 in groups without signal, and the valid rewards per group [N, 1]."""
    if group_size < 2:
        raise ValueError(
            f"group_size must be at least 2, got {group_size}: one completion is its own mean, "
            "so every advantage would be 0. Raise group_size."
        )
    if rewards.ndim != 1 or len(rewards) % group_size:
        raise ValueError(
            f"expected rewards [N * {group_size}], got {list(rewards.shape)}: "
            "pass complete groups, one after another, with NaN for a reward that is missing."
        )
    groups = rewards.reshape(-1, group_size)
    valid = ~groups.isnan()
    counts = valid.sum(dim=1, keepdim=True)
    mean = groups.nansum(dim=1, keepdim=True) / counts.clamp(min=1)
    lowest = torch.where(valid, groups, torch.inf).amin(dim=1, keepdim=True)
    highest = torch.where(valid, groups, -torch.inf).amax(dim=1, keepdim=True)
    # By the extremes: the mean of three times 0.1 is not 0.1, and a small std would blow the difference up.
    return torch.where(valid & (lowest < highest), groups - mean, 0.0), counts


def counted(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, action_mask: Tensor) -> list[Tensor]:
    """A surrogate's inputs as [B, T]: where the mask is False the ratio is 1 and the advantage 0, hence the loss 0."""
    check_same_shape(logprobs=logprobs, old_logprobs=old_logprobs, action_mask=action_mask)
    check_same_shape(advantages=advantages, rows_of_action_mask=action_mask.any(dim=1))
    return _zero_uncounted(action_mask, logprobs, old_logprobs, advantages[:, None])


def _zero_uncounted(action_mask: Tensor, *tensors: Tensor) -> list[Tensor]:
    # where, before any exp: what does not count may be NaN or huge, and a 0 gradient times inf is NaN.
    return [torch.where(action_mask, x, 0.0) for x in tensors]


class GRPO:
    """The loop: sample groups, score them, take `updates_per_rollout` optimizer steps on them, and again.

    policy: the module that is trained; the sampler shares its model.
    prompts, rewards: what is asked, and what judges the answers.
    surrogate: the policy loss per token, without gradient where the advantage is 0, since such rows are not forwarded;
        `grpo_loss` with the config's bounds by default.
    advantages: (rewards [B], group_size) -> [B], such as `centre_by_group`.
    average: from the loss per token to one number, such as `align.aggregate.per_sequence`.
    reference: as `align.models.reference_of` gives it; needed if and only if kl_coef is not 0.
    penalty: what is taken off each completion's reward, [B] of rollouts, such as `align.surrogates.kl_penalty`.
    on_error: what a reward that fails on a sample does: "error" stops, "skip" leaves the sample out, "zero" gives 0.
    """

    def __init__(
        self,
        policy: nn.Module,
        sampler: Sampler,
        prompts: Prompts,
        rewards: Sequence[Reward | Callable[..., Any]],
        config: GRPOConfig,
        accelerator: Accelerator,
        *,
        surrogate: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
        advantages: Callable[[Tensor, int], Tensor] = standardize_by_group,
        average: Average = per_token,
        reference: Reference | None = None,
        penalty: Callable[[Rollouts], Tensor] | None = None,
        on_error: OnError = "error",
    ) -> None:
        if (reference is None) != (config.kl_coef == 0):
            raise ValueError(
                f"kl_coef is {config.kl_coef} and a reference was {'not ' if reference is None else ''}given: "
                "pass reference=reference_of(policy) with a kl_coef above 0, and neither otherwise."
            )
        if config.prompts_per_step < accelerator.num_processes:
            raise ValueError(
                f"prompts_per_step is {config.prompts_per_step}, fewer than the {accelerator.num_processes} processes: "
                "raise it, because a group stays in one process"
            )
        match_sampling(policy, prompts, sampler=sampler.config, config=config.sampling)
        self.config, self.sampler, self.prompts = config, sampler, prompts
        self.rewards = check_rewards(rewards, prompts.columns)
        self.accelerator = accelerator
        self.trainer = Trainer(policy, config.optimizer, accelerator, config.steps)
        self.surrogate = surrogate or partial(grpo_loss, clip_low=config.clip_low, clip_high=config.clip_high)
        self.advantages, self.average, self.reference = advantages, average, reference
        self.penalty, self.importance = penalty, importance_of(config.importance, sampler.config)
        self.on_error: OnError = on_error
        self.step, self.total_steps = 0, config.steps
        self.update = 0  # updates already taken on the current rollouts
        self.position = 0  # prompts drawn before the current rollouts, epochs laid end to end
        self.drawn = 0  # prompts drawn for the current rollouts
        self.rollouts: Rollouts | None = None

    def steps(self) -> Iterator[dict[str, float]]:
        """Yield the metrics of each optimizer step, from the current step to the last."""
        while self.step < self.total_steps:
            started = time.perf_counter()
            sampled: dict[str, float] = {}
            if self.update == 0:
                self.position += self.drawn
                self.rollouts = self._sample()
                sampled = self._describe(self.rollouts) | {"time/sample": time.perf_counter() - started}
            assert self.rollouts is not None
            updated = self._learn(self.rollouts)
            self.step += 1
            self.update = (self.update + 1) % self.config.updates_per_rollout
            elapsed = time.perf_counter() - started
            if sampled:
                sampled["tokens/per_second"] = sampled["tokens/generated"] / elapsed
            yield {**sampled, **updated, "time/step": elapsed}

    def _sample(self) -> Rollouts:
        """Sample and score this process's groups, and replace silent ones by fresh prompts while redraws are left."""
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.sampler.load_weights(self.trainer.policy, self.step)
        self.drawn = self.config.prompts_per_step
        rollouts = self._ask(list(range(self.drawn))[rank::processes])
        for _ in range(self.config.max_redraws):
            silent = [rollouts.numbers[group] for group in self._silent(rollouts).nonzero()[:, 0].tolist()]
            everywhere = sorted(self.trainer.gathered(silent))
            if not everywhere:
                break
            fresh = {number: self.drawn + i for i, number in enumerate(everywhere)}
            self.drawn += len(fresh)
            if silent:
                kept = [group for group, number in enumerate(rollouts.numbers) if number not in fresh]
                rollouts = joined([groups_of(rollouts, kept), self._ask([fresh[n] for n in silent])])
        if rollouts.weight_version != self.step:
            raise RuntimeError(
                f"the sampler's weights are of step {rollouts.weight_version}, the policy is at step {self.step}: "
                "load_weights did not take effect, and training would be off-policy without a correction"
            )
        return rollouts

    def _ask(self, numbers: list[int]) -> Rollouts:
        """Sample a group for each prompt of the step named by number, and score it."""
        prompts, size, seed = self._prompts_of(numbers), self.config.group_size, self.config.seed
        with self.accelerator.autocast():  # the arithmetic of the trainer, or the two would disagree
            rollouts = self.sampler.sample(prompts, group_size=size, seed=seed, step=self.step, numbers=numbers)
        scored = score_rollouts(rollouts, self.rewards, on_error=self.on_error)
        return penalised(scored, self.penalty) if self.penalty else scored

    def _prompts_of(self, numbers: Sequence[int]) -> Prompts:
        rows = rows_at(self.position, max(numbers, default=-1) + 1, len(self.prompts), self.config.seed)
        return self.prompts.select([rows[number] for number in numbers])

    def _silent(self, rollouts: Rollouts) -> Tensor:
        """True for groups whose advantages are all 0, so that nothing can be learned from them. [N]"""
        size = self.config.group_size
        return (self.advantages(rollouts.rewards, size) == 0).view(-1, size).all(dim=1)

    def _learn(self, rollouts: Rollouts) -> dict[str, float]:
        """Take one optimizer step on the rollouts."""
        advantages = self.advantages(rollouts.rewards, self.config.group_size)
        action_mask = rollouts.sequences.action_mask
        if self.config.mask_truncated:
            action_mask = action_mask & rollouts.terminated[:, None]
        denominator = self.trainer.sum_over_processes({"count": self.average.count(action_mask)})["count"]
        # Where the advantage is the only source of gradient, a row without one is not forwarded; its tokens count.
        learning = (advantages != 0) | (self.reference is not None)
        kept = (learning & action_mask.any(dim=1)).nonzero()[:, 0]
        sequences = replace(rollouts.sequences, action_mask=action_mask).select(kept)
        advantages, policy_logprobs = advantages[kept], rollouts.logprobs
        if self.importance is not None:  # what drew was not the policy: the first update notes what the policy says
            policy_logprobs = rollouts.notes.setdefault("policy_logprobs", torch.zeros_like(policy_logprobs))

        def loss_of(said: TokenLogprobs, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            logprobs, device = said.logprobs, said.logprobs.device
            batch = sequences.select(rows).to(device)
            mask, where = batch.action_mask, (kept[rows], slice(logprobs.shape[1]))
            sampled = rollouts.logprobs[where].to(device)
            # The weights that sampled are still the policy's in the first update: the ratio is 1 without rounding.
            old_logprobs = logprobs.detach() if self.update == 0 else policy_logprobs[where].to(device)
            loss = self.surrogate(logprobs, old_logprobs, advantages[rows].to(device), mask)
            # Whatever the surrogate clips, a ratio a token or one a sequence, is what gives no gradient any more.
            (gradient,) = torch.autograd.grad(loss.sum(), logprobs, retain_graph=True)
            clipped = (gradient == 0) & mask & (advantages[rows].to(device) != 0)[:, None]
            gap = (logprobs.detach() - sampled).abs()[mask].sum()
            sums = {"tokens": mask.sum(), "clipped": clipped.sum(), "gap": gap}
            if self.reference is not None:
                with self.accelerator.autocast():
                    ref_logprobs = self.reference(batch.input_ids, mask)
                loss = loss + self.config.kl_coef * ratio_weighted_k3(logprobs, old_logprobs, ref_logprobs, mask)
                sums["kl"] = kl_k3(logprobs.detach(), ref_logprobs)[mask].sum()
            if self.importance is not None:
                policy_logprobs[where] = old_logprobs.cpu().to(policy_logprobs.dtype)
                weighed = self.importance(old_logprobs, sampled, mask)
                loss, sums = loss * weighed.weights, sums | weighed.sums(mask)
            return self.average.mean(loss, mask, denominator=denominator), sums

        sums = self.trainer.step(sequences, loss_of, step=self.step)
        tokens = max(sums.get("tokens", 0.0), 1.0)
        metrics = {f"optim/{name}": sums[name] for name in ("loss", "grad_norm", "learning_rate")}
        metrics |= {"tokens/trained": sums.get("tokens", 0.0), "policy/clip_fraction": sums.get("clipped", 0) / tokens}
        if self.update == 0:
            metrics["policy/sampler_gap"] = sums.get("gap", 0.0) / tokens
            metrics |= importance_metrics(sums, sums.get("tokens", 0.0)) if self.importance is not None else {}
        if self.reference is not None:
            metrics["kl/reference"] = sums.get("kl", 0.0) / tokens
        return metrics

    def _describe(self, rollouts: Rollouts) -> dict[str, float]:
        """Return the metrics of a rollout, over all processes."""
        groups = {"groups": torch.tensor(len(rollouts.numbers)), "silent": self._silent(rollouts).sum()}
        sums = self.trainer.sum_over_processes(rollouts.sums() | groups)
        return means_of(sums) | {"group/silent": sums["silent"] / sums["groups"]}

    def examples(self) -> list[dict[str, Any]]:
        """Return this process's last rollouts as plain values, for the console and the report."""
        if self.rollouts is None:
            return []
        advantages = self.advantages(self.rollouts.rewards, self.config.group_size).tolist()
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
            "drawn": self.drawn,
            **state_of_all(pending, self.trainer.gathered, self._prompts_of),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from where `state` was taken."""
        self.trainer.load_state(state["trainer"])
        self.step, self.update = state["step"], state["update"]
        self.position, self.drawn = state["position"], state["drawn"]
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        self.rollouts = share_of(state, self._prompts_of, rank, processes)
