"""A prompt that rows have in common is forwarded once, and nothing but the work is another."""

from __future__ import annotations

import os
import socket
import warnings

import pytest
import torch
import transformers
from accelerate import Accelerator
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from align import logprobs
from align.batch import Sequences
from align.config import OptimizerConfig
from align.critic import ActorCritic
from align.logprobs import FrozenPolicy, Policy, SharedPrompts, by_length, token_logprobs
from align.models import add_lora, disable_dropout, reference_of
from align.training import Trainer, cut_by_tokens
from tests.models import ARCHITECTURES, tiny_model
from tests.small_runs import small_grpo, small_policy


@pytest.fixture
def share(monkeypatch):
    """Let sharing pay always, or never, and rows of unlike lengths be forwarded apart always, or never."""

    def let(pay: bool, apart: bool = False) -> None:
        monkeypatch.setattr(logprobs, "pays", lambda shared, plain: pay)
        monkeypatch.setattr(logprobs, "SECOND_FORWARD", 0 if apart else 10**9)

    return let


def groups() -> Sequences:
    """Prompts of 13, 20, 1 and 4 tokens, of groups of 4, 2, 3 and 1, mixed; token 2 ends and pads, 0 is padding too."""
    generator = torch.Generator().manual_seed(0)

    def words(count: int) -> list[int]:
        return torch.randint(0, 61, (count,), generator=generator).tolist()

    prompts = [words(13), words(20), words(1), words(4)]
    prompts[0][:3] = [0, 0, 2]  # what looks like padding is a token where it stands
    rows, masks = [], []
    for prompt, rest in ((0, 5), (1, 3), (2, 17), (0, 1), (3, 9), (0, 12), (2, 2), (1, 11), (0, 7), (2, 6)):
        rows.append(prompts[prompt] + words(rest - 1) + [2])
        masks.append([False] * len(prompts[prompt]) + [True] * rest)
    masks[7][23:26] = [False] * 3  # a row with a gap between its actions
    masks[8] = [False] * len(masks[8])  # and one without any
    return Sequences.from_lists(rows, masks)


def forwarded(module: torch.nn.Module) -> list[int]:
    """Collect the tokens of each forward of the trunk from now on."""
    tokens: list[int] = []

    def note(trunk, args, kwargs):
        tokens.append((kwargs["input_ids"] if "input_ids" in kwargs else args[0]).numel())

    module.register_forward_pre_hook(note, with_kwargs=True)
    return tokens


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_values_and_gradients_are_those_of_whole_rows_on_every_architecture(kind, share):
    sequences = groups()
    policy = ActorCritic(tiny_model(kind), entropy=True)
    disable_dropout(policy.model)
    torch.nn.init.normal_(policy.value_head.weight)
    weights = torch.linspace(-1, 1, sequences.input_ids.numel()).view(sequences.input_ids.shape)
    assert policy.shortcuts().cache
    tokens = forwarded(policy.model.base_model)

    def result(pay: bool, apart: bool):
        share(pay, apart)
        tokens.clear()
        policy.zero_grad()
        said = policy(sequences.input_ids, sequences.action_mask)
        sum((weights * each).sum() for each in said).backward()
        gradients = {name: p.grad.clone() for name, p in policy.named_parameters()}
        return [each.detach() for each in said], gradients, list(tokens)

    plain, plain_gradients, whole = result(False, apart=False)
    assert whole == [10 * 30]
    for pay, apart, expected in (
        (True, False, [5 * 20, 10 * 16]),  # a row without actions is a prompt of its first token
        (True, True, [5 * 20, 16, 11, 10, 8, 5, 4, 2, 1, 2]),
        (False, True, [30, 24, 22, 2 * 17, 13, 12, 6, 2, 1]),
    ):
        said, gradients, ran = result(pay, apart)
        assert ran == expected
        for one, other in zip(said, plain, strict=True):
            assert_close(one, other, rtol=1e-5, atol=1e-5)
        for name, gradient in plain_gradients.items():
            largest = float(gradient.abs().max())
            assert_close(gradients[name], gradient, rtol=1e-5, atol=1e-5 * max(largest, 1.0), msg=name)


def test_adapters_and_a_reference_without_them_share_prompts_too(share):
    sequences = groups()
    model = add_lora(tiny_model(), rank=4)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    policy = Policy(model)
    reference = FrozenPolicy(policy, without_adapters=True)
    results = []
    for pay in (True, False):
        share(pay, apart=pay)
        policy.zero_grad()
        out = policy(sequences.input_ids, sequences.action_mask).logprobs
        out.mean().backward()
        gradients = [p.grad.clone() for p in policy.parameters() if p.requires_grad]
        results.append((out.detach(), reference(sequences.input_ids, sequences.action_mask), gradients))
    assert (results[0][0] - results[0][1]).abs().max() > 0.1, "the adapters must matter"
    assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_chunks_of_the_head_and_shared_prompts_combine(share, monkeypatch):
    model, sequences = tiny_model().double(), groups()

    def result():
        model.zero_grad()
        out = token_logprobs(model, sequences.input_ids, None, sequences.action_mask, entropy=True)
        (out.logprobs.sum() + out.entropy.square().sum()).backward()
        return out.logprobs.detach(), [p.grad.clone() for p in model.parameters()]

    share(False)
    plain = result()
    share(True, apart=True)
    monkeypatch.setattr(logprobs, "HEAD_BYTES", 61 * 4 * 5 * 3)
    assert_close(result(), plain, rtol=1e-5, atol=1e-5)  # the model's normalisation is float32


def test_no_row_goes_on_past_the_positions_that_a_model_has(share):
    """Where the longest prompt and the longest rest are of different rows, both together are longer than any row."""
    ids, lengths = torch.randint(0, 61, (4, 30)), torch.tensor([25, 25, 3, 3])
    ids[1, :25], ids[3, :3] = ids[0, :25], ids[2, :3]
    slots, model = torch.arange(30), tiny_model("gpt2", n_positions=30, max_position_embeddings=30)
    mask = (slots >= lengths[:, None]) & (slots < torch.tensor([27, 28, 30, 29])[:, None])
    disable_dropout(model)
    results = []
    for pay in (True, False):
        share(pay, apart=False)
        results.append(token_logprobs(model, ids, None, mask).logprobs)
    assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rest", [1, 2])
def test_completions_of_one_token_and_rows_without_any_action_have_gradients(rest, share):
    model = tiny_model()
    share(True)
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 7, 9, 8]])
    out = token_logprobs(model, ids, None, torch.arange(5).expand(2, 5) >= 5 - rest).logprobs
    assert (out[:, -rest:] < 0).all() and (out[:, :-rest] == 0).all()
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    for width in (1, 5):
        model.zero_grad()
        token_logprobs(model, ids[:, :width], None, torch.zeros(2, width, dtype=torch.bool)).logprobs.sum().backward()
        assert all(p.grad is not None and (p.grad == 0).all() for p in model.parameters())


def test_prompts_are_shared_where_it_pays_and_nowhere_else():
    model = tiny_model(max_position_embeddings=512)
    policy = Policy(model)
    assert policy.shortcuts().cache
    tokens = forwarded(model.base_model)

    def ran(groups: int, size: int, prompt: int, rest: int) -> list[int]:
        tokens.clear()
        starts = torch.randint(0, 61, (groups, prompt)).repeat_interleave(size, dim=0)
        ids = torch.cat([starts, torch.randint(0, 61, (groups * size, rest))], dim=1)
        policy(ids, torch.arange(prompt + rest).expand(ids.shape) >= prompt)
        return list(tokens)

    assert ran(2, 4, 100, 20) == [2 * 100, 8 * 19]
    assert ran(32, 2, 15, 16) == [32 * 15, 64 * 15]
    assert ran(1, 1, 100, 20) == [119]  # a prompt alone; its last token predicts nothing
    assert ran(2, 2, 15, 16) == [4 * 30]  # so little that a second forward costs more
    assert ran(2, 2, 10, 100) == [4 * 109]  # hardly anything is shared


@given(st.lists(st.integers(0, 200), min_size=1, max_size=60))
def test_rows_are_forwarded_apart_until_no_cut_saves_more_padding_than_a_forward_costs(lengths):
    groups = [group.tolist() for group in by_length(torch.tensor(lengths))]
    assert sorted(row for group in groups for row in group) == list(range(len(lengths)))
    assert [lengths[group[0]] for group in groups] == sorted((lengths[group[0]] for group in groups), reverse=True)
    for group in groups:
        widths = [lengths[row] for row in group]
        assert widths == sorted(widths, reverse=True)
        assert all((widths[0] - widths[at]) * (len(widths) - at) <= 64 for at in range(len(widths)))


def test_a_long_row_is_forwarded_apart_from_many_short_ones_and_not_from_a_few():
    assert [group.tolist() for group in by_length(torch.tensor([5, 100, 5]))] == [[1], [0, 2]]
    assert [group.tolist() for group in by_length(torch.tensor([5, 30, 5]))] == [[1, 0, 2]]


def test_a_model_without_a_cache_that_can_be_expanded_forwards_whole_rows_and_says_so_once(share):
    config = transformers.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=2, state_size=4)
    model, sequences = transformers.AutoModelForCausalLM.from_config(config), groups()
    share(True)
    with pytest.warns(UserWarning, match="Mamba.*every row forwards its prompt"):
        out = token_logprobs(model, sequences.input_ids, None, sequences.action_mask).logprobs
    share(False)
    plain = token_logprobs(model, sequences.input_ids, None, sequences.action_mask).logprobs
    assert_close(out, plain, rtol=0, atol=0)
    share(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_logprobs(model, sequences.input_ids, None, sequences.action_mask)


def test_a_cache_that_continues_a_prompt_wrongly_is_noticed(share):
    model, sequences = tiny_model(), groups()
    plain = token_logprobs(tiny_model(), sequences.input_ids, None, sequences.action_mask).logprobs

    def shift(module, args, kwargs):
        past = kwargs.get("past_key_values")
        if past is not None:
            kwargs["position_ids"] = kwargs["position_ids"] * 2
        return args, kwargs

    model.model.register_forward_pre_hook(shift, with_kwargs=True)
    share(True)
    with pytest.warns(UserWarning, match="LlamaForCausalLM.*every row forwards its prompt"):
        out = token_logprobs(model, sequences.input_ids, None, sequences.action_mask).logprobs
    assert_close(out, plain)


def test_gradient_checkpointing_forwards_whole_rows_and_says_so_once_and_is_shared_again_in_eval_mode(share):
    model, sequences = tiny_model().train(), groups()
    share(True)
    expected = token_logprobs(model, sequences.input_ids, None, sequences.action_mask).logprobs
    model.gradient_checkpointing_enable()
    with pytest.warns(UserWarning, match="gradient checkpointing is on, so every row forwards its prompt"):
        out = token_logprobs(model, sequences.input_ids, None, sequences.action_mask).logprobs
    tokens = forwarded(model.base_model)
    assert_close(out, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        token_logprobs(model, sequences.input_ids, None, sequences.action_mask).logprobs.sum().backward()
    assert tokens == [300]
    token_logprobs(model.eval(), sequences.input_ids, None, sequences.action_mask)
    assert tokens[1:] == [5 * 20, 10 * 16]


def test_what_a_model_does_not_allow_is_said_when_the_trainer_is_made_and_never_again_even_of_its_copy():
    policy, _ = small_policy()
    policy.model.train().gradient_checkpointing_enable()
    reference, sequences = reference_of(policy), groups()
    with pytest.warns(UserWarning, match="gradient checkpointing is on"):
        trainer = Trainer(policy, OptimizerConfig(), Accelerator(cpu=True), total_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        plain = trainer.policy(sequences.input_ids, sequences.action_mask).logprobs
        assert_close(reference(sequences.input_ids, sequences.action_mask), plain)


def test_rows_of_one_prompt_stay_together_in_micro_batches_and_count_as_they_are_forwarded():
    ids = torch.randint(0, 61, (4, 100)).repeat(4, 1)  # prompts 0 1 2 3 0 1 2 3 ...
    lengths = torch.full((16,), 140)
    ids = torch.cat([ids, torch.randint(0, 61, (16, 40))], dim=1)
    mask = torch.arange(140).expand(16, 140) >= 100
    budget = 2 * (100 + 4 * (39 + 100 // 8))  # two prompts, the rest of four rows each, and an eighth of their caches
    cut = cut_by_tokens(lengths, budget, prompts=SharedPrompts.of(ids, mask))
    assert [len(rows) for rows in cut] == [8, 8]
    assert all(len({row % 4 for row in rows.tolist()}) == 2 for rows in cut)
    for rows in cut:
        prompts = SharedPrompts.of(ids[rows], mask[rows])
        assert prompts.tokens(prompts.numbers.argsort())[-1] == budget
    assert [len(rows) for rows in cut_by_tokens(lengths, budget)] == [4, 4, 4, 4]


def test_a_prompt_that_many_rows_share_is_not_cached_for_more_rows_than_the_budget_has_room_for():
    ids = torch.randint(0, 61, (1, 400)).expand(64, 400)
    lengths, mask = torch.full((64,), 402), torch.arange(402).expand(64, 402) >= 400
    cut = cut_by_tokens(lengths, 1000, prompts=SharedPrompts.of(torch.cat([ids, ids[:, :2]], dim=1), mask))
    assert {len(rows) for rows in cut[:-1]} == {(1000 - 400) // (1 + 400 // 8)}


def test_rows_of_one_prompt_stay_together_however_unlike_their_lengths_which_count_without_padding():
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(0, 61, (3, 4), generator=generator)
    lengths = torch.tensor([200, 10, 10, 10, 200, 10, 10, 10, 200])
    ids = torch.cat([prompt.repeat_interleave(3, 0), torch.randint(0, 61, (9, 196), generator=generator)], dim=1)
    slots = torch.arange(200)
    mask = (slots >= 4) & (slots < lengths[:, None])
    cut = cut_by_tokens(lengths, 450, prompts=SharedPrompts.of(ids, mask))
    assert [rows.tolist() for rows in cut] == [[0, 1, 2, 4, 3, 5], [8, 6, 7]]


def test_pairs_stay_together_whatever_they_share():
    ids = torch.randint(0, 61, (6, 100)).repeat_interleave(2, dim=0)
    mask = torch.arange(100).expand(12, 100) >= 80
    cut = cut_by_tokens(torch.full((12,), 100), 280, together=2, prompts=SharedPrompts.of(ids, mask))
    assert sorted(torch.cat(cut).tolist()) == list(range(12))
    assert all(len(rows) == 4 and (rows[1::2] == rows[::2] + 1).all() for rows in cut)


def test_prompts_are_left_padded_without_holes_and_their_numbers_lead_back_to_the_rows():
    sequences = groups()
    prompts = SharedPrompts.of(sequences.input_ids, sequences.action_mask)
    assert prompts.ids.shape == prompts.mask.shape == (5, 20)
    for row, number in enumerate(prompts.numbers.tolist()):
        length = int(prompts.lengths[row])
        assert prompts.mask[number].tolist() == [False] * (20 - length) + [True] * length
        assert prompts.ids[number, 20 - length :].tolist() == sequences.input_ids[row, :length].tolist()


def test_some_of_the_architectures_have_a_window_that_the_prompts_are_longer_than():
    assert {kind for kind, (_, extra) in ARCHITECTURES.items() if extra.get("sliding_window") == 8} == {
        "mistral",
        "gemma2",
        "gemma3",
        "gpt_oss",
        "phi3",
    }


def test_dropout_is_noticed_and_leaves_whole_rows(share):
    model, sequences = tiny_model("gpt2").train(), groups()
    share(True)
    tokens = forwarded(model.base_model)
    with pytest.warns(UserWarning, match="dropout"):
        token_logprobs(model, sequences.input_ids, None, sequences.action_mask)
    assert tokens[-1] == 300


def sometimes(prompts, completions, letter):
    """Give the groups of some prompts equal rewards, so that their rows are skipped."""
    return [
        float(len(text) % 2) if prompt[0] in "abc" else 1.0 for prompt, text in zip(prompts, completions, strict=True)
    ]


def trained(micro: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    algorithm = small_grpo(
        steps=4, updates_per_rollout=4, lora=True, double=True, reward=sometimes, micro=micro, prompts_per_step=5
    )
    list(algorithm.steps())
    return algorithm.trainer.state()["parameters"]


def child(rank: int, port: int, path: str) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    torch.set_num_threads(1)
    logprobs.SECOND_FORWARD, logprobs.HEAD_BYTES = 0, 61 * 4 * 3 * 4
    said: list[bool] = []
    pays = logprobs.pays
    logprobs.pays = lambda shared, plain: said.append(pays(shared, plain)) or said[-1]
    parameters = trained(micro=40)
    assert any(said), "whole rows prove nothing here"
    if rank == 0:
        torch.save(parameters, path)
    torch.distributed.destroy_process_group()


def test_with_head_chunks_a_budget_skipped_rows_lora_and_two_processes_the_run_is_the_plain_one(share, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(child, args=(port, str(tmp_path / "two.pt")), nprocs=2)
    share(False)
    plain = trained(micro=10_000)
    assert_close(torch.load(tmp_path / "two.pt"), plain, rtol=0, atol=1e-6)
