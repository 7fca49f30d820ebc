"""The critic: what the state before a token is worth, and how much better than that the token turned out.

V(s_t) is of the state that token t was chosen in, what stands before it, and laid out at t as log-probabilities are.
The critic is a head on the policy's trunk, so that with adapters one copy of the weights serves policy, critic and, the
adapters switched off, the reference; or it is a value model with a trunk of its own, such as a reward model. Either
way it is in one module with the policy, the one that Accelerate is handed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from align.batch import Sequences
from align.logprobs import Policy, TokenLogprobs, base_model, token_logprobs
from classic_rl.masked import check_same_shape
from classic_rl.returns import generalized_advantages

if TYPE_CHECKING:
    from accelerate import Accelerator


class ValueHead(nn.Module):
    """A linear map from hidden states to a value, in float32 under autocast too. It begins with 0 for every state."""

    def __init__(self, hidden_size: int, *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros((), dtype=dtype))

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the value of each state. [N, H] -> [N]"""
        with torch.autocast(hidden.device.type, enabled=False):
            return hidden.to(self.weight.dtype) @ self.weight + self.bias


class ActorCritic(Policy):
    """A causal LM with a critic: its forward gives log-probabilities, values and, if asked, entropy.

    entropy: also return the entropy of each action's distribution, with its gradient, at the cost of more memory.
    value_model: a critic of its own in place of a head on the policy's trunk: (input_ids [B, T], mask [B, T]) -> what
        it says at the tokens of the mask, of each text up to there, as `align.reward_head.RewardModel` does.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        temperature: float = 1.0,
        entropy: bool = False,
        value_model: nn.Module | None = None,
    ) -> None:
        super().__init__(model, temperature=temperature)
        self.entropy, self.value_model = entropy, value_model
        self.value_head = _head_for(model) if value_model is None else None

    def forward(self, input_ids: Tensor, action_mask: Tensor) -> TokenLogprobs:
        """Score the actions of right-padded rows. [B, T], [B, T] -> TokenLogprobs with values."""
        said = token_logprobs(
            self.model,
            input_ids,
            None,
            action_mask,
            temperature=self.temperature,
            entropy=self.entropy,
            value_head=self.value_head,
        )
        if self.value_model is None:
            return said
        # What is said at a token is of the text up to it: of the state that the next token is chosen in.
        at_state = self.value_model(input_ids, F.pad(action_mask[:, 1:], (0, 1))).logprobs
        return said._replace(values=F.pad(at_state[:, :-1], (1, 0)))


def _head_for(model: nn.Module) -> ValueHead:
    parameter = next(model.parameters())
    causal_lm: Any = base_model(model)
    # what the other head takes: some models project their hidden states to another width before it
    width = getattr(causal_lm.get_output_embeddings(), "in_features", causal_lm.config.get_text_config().hidden_size)
    return ValueHead(width, dtype=torch.promote_types(parameter.dtype, torch.float32)).to(parameter.device)


class Seen(NamedTuple):
    """What policy, critic and reference said of the actions, without gradient; 0 elsewhere. [B, T]

    final_values: the value of the state after the last action, where it was asked for. [B]
    """

    logprobs: Tensor
    values: Tensor
    ref_logprobs: Tensor
    final_values: Tensor | None


class Targets(NamedTuple):
    """What an update needs of every token; 0 where the mask is False. [B, T]

    action_mask: bool, the actions that are learned from.
    old_logprobs, values: of policy and critic with the weights that sampled.
    advantages: whitened over the actions of the step.
    returns: what the critic is to predict.
    """

    action_mask: Tensor
    old_logprobs: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def select(self, rows: Tensor, width: int, device: torch.device | str = "cpu") -> Targets:
        """Return some rows, the first `width` tokens of them, on a device."""
        return Targets(*(each[rows, :width].to(device) for each in self))


@torch.no_grad()
def see(
    policy: ActorCritic,
    reference: Callable[[Tensor, Tensor], Tensor] | None,
    sequences: Sequences,
    accelerator: Accelerator,
    *,
    cut: Callable[[Sequences], list[Tensor]],
    look_ahead: bool,
) -> Seen:
    """Ask policy, critic and reference (the policy where there is none) for every action, in micro-batches as `cut`.

    look_ahead: also for the value of the state after the last action. A token that stands for any is put there:
        a state is what came before its token, so which one makes no difference.
    """
    lengths, mask = sequences.lengths, sequences.action_mask
    if look_ahead:
        after = torch.arange(mask.shape[1] + 1) == lengths[:, None]
        sequences = Sequences(F.pad(sequences.input_ids, (0, 1)), lengths + 1, F.pad(mask, (0, 1)) | after)
    cuts, parts = cut(sequences), []
    for rows in cuts:
        batch = sequences.select(rows).to(accelerator.device)
        said = policy(batch.input_ids, batch.action_mask)
        with accelerator.autocast():
            ref_logprobs = reference(batch.input_ids, batch.action_mask) if reference else said.logprobs
        told = torch.stack([said.logprobs, said.values, ref_logprobs]).cpu()
        parts.append(F.pad(told, (0, sequences.input_ids.shape[1] - told.shape[2])))
    whole = torch.cat(parts, dim=1)[:, torch.cat(cuts).argsort()]
    final_values = whole[1].gather(1, lengths[:, None])[:, 0] if look_ahead else None
    logprobs, values, ref_logprobs = torch.where(mask, whole[:, :, : mask.shape[1]], 0.0)
    return Seen(logprobs, values, ref_logprobs, final_values)


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
