"""Features, networks and their optimizer."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from classic_rl.networks import Adam, Features, network, torso, without_gradient


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_boxes_become_vectors_and_categories_one_hot_vectors():
    box = Features(spaces.Box(-1, 1, (2, 3), np.float64))
    assert box.shape == (6,)
    obs = np.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(box(obs), obs.reshape(2, 6).astype(np.float32))
    assert box(obs).dtype == np.float32
    discrete = Features(spaces.Discrete(3, start=-1))
    np.testing.assert_array_equal(discrete(np.array([-1, 1])), [[1, 0, 0], [0, 0, 1]])
    several = Features(spaces.MultiDiscrete([2, 3]))
    assert several.shape == (5,)
    np.testing.assert_array_equal(several(np.array([[1, 0], [0, 2]])), [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]])
    assert box(obs[:0]).shape == (0, 6) and several(np.zeros((0, 2), np.int64)).shape == (0, 5)
    np.testing.assert_array_equal(Features(spaces.MultiBinary(2))(np.array([[1, 0]])), [[1, 0]])


@pytest.mark.parametrize(("shape", "features"), [((84, 84, 3), (3, 84, 84)), ((4, 84, 84), (4, 84, 84))])
def test_images_stay_images_with_their_channels_first(shape, features):
    encode = Features(spaces.Box(0, 255, shape, np.uint8))
    assert encode.is_image and encode.shape == features
    obs = np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8)
    assert encode(obs).shape == (2, *features) and encode(obs).dtype == np.uint8
    if shape[-1] == 3:
        np.testing.assert_array_equal(encode(obs)[:, 1], obs[..., 1])


def test_a_space_that_is_no_array_is_refused():
    with pytest.raises(ValueError, match="expected a Box"):
        Features(spaces.Text(3))


def test_layers_are_orthogonal_times_their_gain_and_begin_without_bias():
    layers = network((8,), (16, 16), 3, gain=2.0, last_gain=0.01, generator=generator())
    dense = [layer for layer in layers if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in dense] == [(16, 8), (16, 16), (3, 16)]
    for layer, gain in zip(dense, (2.0, 2.0, 0.01), strict=True):
        weight = layer.weight.detach()
        square = weight.T @ weight if weight.shape[0] > weight.shape[1] else weight @ weight.T
        torch.testing.assert_close(square, gain**2 * torch.eye(len(square)))
        assert not layer.bias.any()


def test_a_seed_gives_the_same_network_whatever_was_drawn_elsewhere():
    one = network((4,), (8,), 2, generator=generator(3)).state_dict()
    torch.rand(5)
    other = network((4,), (8,), 2, generator=generator(3)).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_acting_without_gradient_gives_what_the_network_gives_even_after_an_update(activation):
    layers = network((5,), (32, 32), 3, activation=activation, generator=generator())
    optimizer = Adam(layers)
    act = without_gradient(layers)
    x = torch.randn(7, 5, generator=generator(1))
    for _ in range(2):
        torch.testing.assert_close(torch.from_numpy(act(x.numpy())), layers(x).detach())
        optimizer.step(layers(x).square().mean(), learning_rate=0.1)


@pytest.mark.parametrize("shape", [(3, 84, 84), (4, 10, 10)])
def test_images_of_any_size_go_through_convolutions(shape):
    layers, width = torso(shape, (32,), activation=nn.ReLU, generator=generator())
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=generator())
    assert layers(images).shape == (2, 32) == (2, width)
    np.testing.assert_array_equal(without_gradient(layers)(images.numpy()), layers(images).detach().numpy())


@pytest.mark.parametrize("max_grad_norm", [None, 0.1, 1e6])
def test_adam_over_one_flat_tensor_is_adam_over_the_parameters_clipped_together(max_grad_norm):
    ours, theirs = (network((4,), (8, 8), 2, generator=generator()) for _ in range(2))
    optimizer, reference = (
        Adam(ours, eps=1e-5, max_grad_norm=max_grad_norm),
        torch.optim.Adam(theirs.parameters(), eps=1e-5),
    )
    for step in range(20):
        x = torch.randn(6, 4, generator=generator(step))
        rate = 0.01 / (step + 1)
        norm = optimizer.step((ours(x) - 1).square().sum(), learning_rate=rate)
        reference.param_groups[0]["lr"] = rate
        reference.zero_grad()
        (theirs(x) - 1).square().sum().backward()
        expected = torch.nn.utils.clip_grad_norm_(theirs.parameters(), max_grad_norm or torch.inf)
        reference.step()
        torch.testing.assert_close(norm, expected)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_adam_goes_on_bitwise_from_its_state():
    def step(layers: nn.Sequential, optimizer: Adam, seed: int) -> None:
        x = torch.randn(6, 4, generator=generator(seed))
        optimizer.step(layers(x).square().mean(), learning_rate=0.01)

    layers = network((4,), (8,), 2, generator=generator())
    optimizer = Adam(layers)
    step(layers, optimizer, 0)
    state = optimizer.state()
    step(layers, optimizer, 1)
    other = network((4,), (8,), 2, generator=generator(9))
    resumed = Adam(other)
    resumed.load_state(state)
    step(other, resumed, 1)
    assert torch.equal(optimizer.memory[0], resumed.memory[0])
    assert torch.equal(layers[0].weight, other[0].weight)


def test_numbers_with_bounds_are_scaled_to_one_and_others_stay():
    largest = np.finfo(np.float32).max
    space = spaces.Box(
        np.array([-1.2, -0.07, -np.inf, -largest]), np.array([0.6, 0.07, 3.0, largest]), dtype=np.float64
    )
    scaled = Features(space, scale=True)(np.array([[-1.2, 0.07, 2.0, 9.0], [-0.3, 0.0, 3.0, -9.0]]))
    np.testing.assert_allclose(scaled, [[-1, 1, 2, 9], [0, 0, 3, -9]], atol=1e-6)
    assert scaled.dtype == np.float32
    np.testing.assert_array_equal(Features(spaces.Discrete(2), scale=True)(np.array([1])), [[0, 1]])


def test_a_gradient_that_is_not_finite_is_told_before_it_reaches_the_weights():
    layers = network((4,), (8,), 2, generator=generator())
    optimizer = Adam(layers)
    before = optimizer.memory[0].clone()
    with pytest.raises(FloatingPointError, match="norm of the gradient is nan"):
        optimizer.step(layers(torch.full((1, 4), torch.nan)).sum(), learning_rate=0.1)
    assert torch.equal(optimizer.memory[0], before)
