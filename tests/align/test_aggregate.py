import pytest
import torch
from torch.testing import assert_close

from align.aggregate import fixed_length_mean, per_fixed_length, per_sequence, per_token, sequence_mean, token_mean

AVERAGES = {"token": per_token, "sequence": per_sequence, "fixed length": per_fixed_length(8)}
every_average = pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES.keys())

# Rows of 6, 3, 0 and 1 actions, the third left out of the loss; actions need not be in one piece.
MASK = torch.tensor(
    [
        [1, 1, 1, 1, 1, 1],
        [0, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 0],
    ]
).bool()


def random_loss(garbage=torch.nan):
    loss = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return torch.where(MASK, loss, garbage).requires_grad_()


def value_and_gradient(average, loss, mask, pieces=None):
    """The average over the step, added up over the pieces that the rows are cut into, and its gradient."""
    denominator = average.count(mask)
    parts = [
        average.mean(loss[rows], mask[rows], denominator=denominator) for rows in pieces or [list(range(len(loss)))]
    ]
    total = torch.stack(parts).sum()
    return total, torch.autograd.grad(total, loss)[0]


def test_the_token_mean_weighs_every_token_alike():
    loss = random_loss()
    assert per_token.count(MASK) == 10
    assert_close(token_mean(loss, MASK, denominator=10), loss[MASK].mean())


def test_the_sequence_mean_averages_each_row_over_its_own_tokens_first():
    loss = random_loss()
    rows = torch.stack([loss[i][MASK[i]].mean() for i in (0, 1, 3)])
    assert per_sequence.count(MASK) == 3
    assert_close(sequence_mean(loss, MASK, denominator=3), rows.mean())


def test_the_fixed_length_mean_divides_every_row_by_one_length():
    loss = random_loss()
    rows = torch.stack([loss[i][MASK[i]].sum() / 8 for i in (0, 1, 3)])
    assert per_fixed_length(8).count(MASK) == 3
    assert_close(fixed_length_mean(loss, MASK, length=8, denominator=3), rows.mean())


@every_average
def test_what_is_not_counted_reaches_neither_value_nor_gradient(average):
    clean, clean_grad = value_and_gradient(average, random_loss(garbage=0.0), MASK)
    value, grad = value_and_gradient(average, random_loss(garbage=torch.nan), MASK)
    assert_close(value, clean)
    assert_close(grad, clean_grad)
    assert (grad[~MASK] == 0).all()


@every_average
@pytest.mark.parametrize("pieces", [[[0], [1], [2], [3]], [[2], [0, 3], [1]], [[0, 1, 2], [3]]])
def test_how_a_batch_is_cut_into_micro_batches_never_changes_its_gradient(average, pieces):
    loss = random_loss()
    whole, whole_grad = value_and_gradient(average, loss, MASK)
    value, grad = value_and_gradient(average, loss, MASK, pieces)
    assert_close(value, whole)
    assert_close(grad, whole_grad)


@every_average
def test_counts_of_pieces_add_up_to_the_count_of_the_step(average):
    assert sum(average.count(MASK[i : i + 1]) for i in range(4)) == average.count(MASK)


@every_average
def test_neither_padding_nor_the_order_of_rows_changes_the_average(average):
    loss = random_loss()
    whole, grad = value_and_gradient(average, loss, MASK)
    order = torch.tensor([2, 0, 3, 1])
    wider = torch.cat([loss[order], torch.full((4, 3), torch.inf)], dim=1).detach().requires_grad_()
    wider_mask = torch.cat([MASK[order], torch.zeros(4, 3, dtype=torch.bool)], dim=1)
    value, wider_grad = value_and_gradient(average, wider, wider_mask)
    assert_close(value, whole)
    assert_close(wider_grad[:, :6], grad[order])


@every_average
def test_processes_that_average_their_gradients_divide_the_denominator_by_their_number(average):
    loss, denominator = random_loss(), average.count(MASK)
    parts = [average.mean(loss[rows], MASK[rows], denominator=denominator / 2) for rows in ([0, 2], [1, 3])]
    assert_close((parts[0] + parts[1]) / 2, average.mean(loss, MASK, denominator=denominator))


@every_average
@pytest.mark.parametrize("denominator", [0, 5, torch.tensor(0), torch.tensor(5)])
def test_a_batch_without_actions_gives_a_zero_that_has_a_gradient(average, denominator):
    loss = random_loss()
    nothing = torch.zeros_like(MASK)
    assert average.count(nothing) == 0
    value = average.mean(loss, nothing, denominator=denominator)
    value.backward()
    assert value == 0 and (loss.grad == 0).all()


@every_average
@pytest.mark.parametrize("shapes", [((4, 6), (4, 1)), ((4, 6), (1, 6)), ((1, 6), (4, 6)), ((4, 1), (4, 6))])
def test_shapes_that_would_broadcast_are_refused(average, shapes):
    with pytest.raises(ValueError, match="Squeeze or expand"):
        average.mean(torch.zeros(shapes[0]), torch.ones(shapes[1]).bool(), denominator=1)


def test_a_length_below_one_is_refused_with_what_to_pass():
    with pytest.raises(ValueError, match="got 0: pass the length cap"):
        per_fixed_length(0)
