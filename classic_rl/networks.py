"""Small networks for small environments: observations to features, features to outputs, and how they are updated.

Features are float32 vectors; images (three axes of uint8) stay images and meet a convolution first.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

RELU_GAIN = math.sqrt(2)
"""The gain that orthogonal layers commonly have between non-linearities."""


class _NumPyTanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        y = torch.from_numpy(np.tanh(x.detach().numpy()))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return torch.ops.aten.tanh_backward(gradient, *ctx.saved_tensors)


class Tanh(nn.Tanh):
    """tanh by NumPy, for tensors on the CPU: PyTorch's takes two to ten times as long, a fifth of PPO's update."""

    def forward(self, input: Tensor) -> Tensor:
        """[...] -> [...]"""
        return _NumPyTanh.apply(input)  # pyright: ignore[reportReturnType]


class ReLU(nn.ReLU):
    """ReLU in place of its input, which saves a tensor a layer."""

    def __init__(self) -> None:
        super().__init__(inplace=True)


class Features:
    """Turns observations of a space into what a network takes.

    Boxes are flattened, categories become one-hot vectors. A box of uint8 with three axes is an image: it stays uint8,
    its channels first. `shape` is that of one observation's features: [D], or [C, H, W] for an image.

    Args:
        space: of the observations.
        scale: whether numbers of a Box that have bounds are mapped to [-1, 1]. It matters where one of them, such as a
            speed of at most 0.07, would hardly move the first layer.

    >>> Features(spaces.Discrete(3))(np.array([2, 0]))
    array([[0., 0., 1.],
           [1., 0., 0.]], dtype=float32)
    """

    def __init__(self, space: spaces.Space, *, scale: bool = False) -> None:
        self.space = space
        self.is_image = isinstance(space, spaces.Box) and space.dtype == np.uint8 and len(space.shape) == 3
        self._channels_last = self.is_image and shape_of(space)[-1] <= 4 < shape_of(space)[0]
        if isinstance(space, spaces.Discrete):
            self._sizes, self._starts = np.array([space.n]), np.array([space.start])
        elif isinstance(space, spaces.MultiDiscrete):
            self._sizes, self._starts = space.nvec.reshape(-1), np.asarray(space.start).reshape(-1)
        elif isinstance(space, spaces.Box | spaces.MultiBinary):
            self._sizes = self._starts = None
        else:
            raise ValueError(
                f"expected a Box, Discrete, MultiDiscrete or MultiBinary space of observations, got {space}"
            )
        self.shape = self._of_one()
        self._bounds = _bounds(space) if scale and isinstance(space, spaces.Box) and not self.is_image else None

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        """Return the features of observations. [N, ...] -> [N, D] or [N, C, H, W]"""
        if self.is_image:
            return np.moveaxis(obs, -1, -3) if self._channels_last else obs
        if self._sizes is None:
            numbers = np.asarray(obs, dtype=np.float32).reshape(len(obs), *self.shape)
            return numbers if self._bounds is None else (numbers - self._bounds[0]) / self._bounds[1]
        rows = np.asarray(obs).reshape(len(obs), len(self._sizes)) - self._starts
        places = rows + np.concatenate([[0], np.cumsum(self._sizes)[:-1]])
        hot = np.zeros((len(obs), int(self._sizes.sum())), dtype=np.float32)
        np.put_along_axis(hot, places, 1.0, axis=1)
        return hot

    def _of_one(self) -> tuple[int, ...]:
        if self.is_image:
            shape = shape_of(self.space)
            return (shape[-1], *shape[:-1]) if self._channels_last else shape
        return (int(np.prod(shape_of(self.space))) if self._sizes is None else int(self._sizes.sum()),)


def linear(inputs: int, outputs: int, *, gain: float, generator: torch.Generator) -> nn.Linear:
    """Make a layer with orthogonal weights scaled by `gain`, and biases of 0.

    Source: Saxe et al. 2014 (arXiv:1312.6120); gains as Andrychowicz et al. 2021 (arXiv:2006.05990) compare them.
    """
    return _orthogonal(nn.Linear(inputs, outputs), gain, generator)


def torso(
    shape: tuple[int, ...],
    hidden: Sequence[int],
    *,
    activation: type[nn.Module] = Tanh,
    gain: float = RELU_GAIN,
    generator: torch.Generator,
) -> tuple[nn.Sequential, int]:
    """Make all layers of a network but the last.

    Args:
        shape: of one observation's features, [D] or [C, H, W]; images get two convolutions (those of Mnih et al. 2013,
            arXiv:1312.5602, or of 3 x 3 where a side is below 36 pixels) with ReLU.
        hidden: widths of the dense layers.
        activation: after each dense layer.
        gain: of the orthogonal weights.
        generator: draws the weights.

    Returns:
        The layers, and the width of what they give.
    """
    layers: list[nn.Module] = []
    width = shape[0]
    if len(shape) == 3:
        layers, width = _convolutions(shape, gain, generator)
    for size in hidden:
        layers += [linear(width, size, gain=gain, generator=generator), activation()]
        width = size
    return nn.Sequential(*layers), width


def network(
    shape: tuple[int, ...],
    hidden: Sequence[int],
    outputs: int,
    *,
    activation: type[nn.Module] = Tanh,
    gain: float = RELU_GAIN,
    last_gain: float = 1.0,
    generator: torch.Generator,
) -> nn.Sequential:
    """Make a whole network: a `torso` and a last layer with its own gain, small where it should begin undecided."""
    layers, width = torso(shape, hidden, activation=activation, gain=gain, generator=generator)
    return layers.append(linear(width, outputs, gain=last_gain, generator=generator))


def without_gradient(
    layers: nn.Sequential, weights: Mapping[str, Tensor] | None = None
) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function that maps features to outputs without gradient, always with the layers' present weights.

    Dense layers with Tanh or ReLU run in NumPy, which takes a third of PyTorch's time for a few rows. Build it after
    the `Adam` of the layers, which moves the weights.

    Args:
        layers: which to run.
        weights: in place of their own, by the same names; with axes in front, of several networks at once, whose
            features and outputs have the same axes in front. [...] as the layers', or [S, ...]
    """
    weights = dict(layers.named_parameters()) if weights is None else weights
    steps: list[Callable[[np.ndarray], np.ndarray]] = []
    for index, layer in enumerate(layers):
        if isinstance(layer, nn.Linear):
            steps.append(_dense(weights[f"{index}.weight"], weights[f"{index}.bias"]))
        elif isinstance(layer, nn.Tanh):
            steps.append(np.tanh)
        elif isinstance(layer, nn.ReLU):
            steps.append(lambda x: np.maximum(x, 0.0))
        else:
            return _in_torch(layers)

    def outputs(x: np.ndarray) -> np.ndarray:
        for step in steps:
            x = step(x)
        return x

    return outputs


class Adam:
    """Adam over one flat tensor that all parameters of a module become views of: a few large operations a step.

        m = b1 * m + (1 - b1) * g,   v = b2 * v + (1 - b2) * g^2
        theta = theta - lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    Source: Kingma & Ba 2015 (arXiv:1412.6980).

    Args:
        module: what is learned; its parameters and their gradients are views from now on, so load weights in place
            (`load_state_dict` does).
        eps: what is divided by where there is no gradient.
        max_grad_norm: the gradient is scaled down to this norm where it is larger; None leaves it.

    Attributes:
        memory: weights, gradient, mean and square, each of all parameters in their order. [4, P]
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        eps: float = 1e-5,
        max_grad_norm: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        self.eps, self.max_grad_norm, self.betas = eps, max_grad_norm, betas
        self._parameters = list(module.parameters())
        flat = torch.cat([parameter.detach().reshape(-1) for parameter in self._parameters])
        self.memory, self._steps = torch.stack([flat, *torch.zeros(3, len(flat))]), torch.zeros(())
        self._move_to(self.memory, self._steps)

    @classmethod
    def together(cls, optimizers: Sequence[Adam]) -> tuple[Adam, Tensor]:
        """Join optimizers of S equal modules, which stay usable: one step is one of each, by its own gradient's norm.

        Returns:
            The joint optimizer, its `memory` [4, S, P], and all weights, to compute a loss with. [S, P]
        """
        joint = copy.copy(optimizers[0])
        joint.memory, joint._steps = torch.stack([one.memory for one in optimizers], dim=1), joint._steps.clone()
        joint._rows = tuple(joint.memory)
        for row, one in enumerate(optimizers):
            one._move_to(joint.memory[:, row], joint._steps)
        weights = joint.memory[0].data.requires_grad_()
        weights.grad = joint.memory[1]
        return joint, weights

    def _move_to(self, memory: Tensor, steps: Tensor) -> None:
        self.memory, self._steps = memory, steps
        self._rows = tuple(memory)
        for parameter, (start, end) in zip(self._parameters, _spans(self._parameters), strict=True):
            parameter.data, parameter.grad = (row[start:end].view_as(parameter) for row in memory[:2])

    def step(self, loss: Tensor, *, learning_rate: float) -> Tensor:
        """Go one step down the loss; return the norm that the gradient had before it was clipped, [] or [S].

        Raises:
            FloatingPointError: before the step, if the gradient is not finite.
        """
        weights, gradient, mean, square = self._rows
        gradient.zero_()
        loss.backward()
        with torch.no_grad():
            norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
            largest = norm.max().item()
            if not math.isfinite(largest):
                raise FloatingPointError(
                    f"the norm of the gradient is {norm.squeeze(-1).tolist()}; the weights are as they were. "
                    "Look for rewards or observations that are not finite; else lower learning_rate, or scale rewards."
                )
            if self.max_grad_norm is not None and largest > self.max_grad_norm:
                gradient.mul_((self.max_grad_norm / (norm + 1e-6)).clamp(max=1.0))
            self._steps += 1
            # One fused operation, which torch.optim.Adam ends in: for some ten thousand weights it takes a fifth of the
            # time of the equation's several, and the way there three times its own.
            torch._fused_adam_(  # pyright: ignore[reportPrivateImportUsage]
                [weights], [gradient], [mean], [square], [], [self._steps], amsgrad=False, maximize=False,
                weight_decay=0.0, beta1=self.betas[0], beta2=self.betas[1], lr=learning_rate, eps=self.eps,
            )  # fmt: skip
        return norm.squeeze(-1)

    def state(self) -> dict[str, Any]:
        """Return weights and moments."""
        return {"memory": self.memory[[0, 2, 3]], "steps": self._steps.clone()}  # the gradient begins anew each step

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to what `state` returned, in place."""
        self.memory[[0, 2, 3]] = state["memory"]
        self._steps.copy_(state["steps"])


class Pixels(nn.Module):
    """Images of uint8 as floats between 0 and 1."""

    def forward(self, images: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]"""
        return images.float() / 255.0


def _convolutions(shape: tuple[int, ...], gain: float, generator: torch.Generator) -> tuple[list[nn.Module], int]:
    if min(shape[1:]) >= 36:
        first, second = nn.Conv2d(shape[0], 16, 8, stride=4), nn.Conv2d(16, 32, 4, stride=2)
    else:
        first, second = nn.Conv2d(shape[0], 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
    layers: list[nn.Module] = [Pixels()]
    for layer in (first, second):
        layers += [_orthogonal(layer, gain, generator), nn.ReLU()]
    layers.append(nn.Flatten())
    with torch.no_grad():
        width = nn.Sequential(*layers)(torch.zeros(1, *shape, dtype=torch.uint8)).shape[1]
    return layers, width


def _orthogonal(layer: Any, gain: float, generator: torch.Generator) -> Any:
    with torch.no_grad():
        nn.init.orthogonal_(layer.weight, gain, generator=generator)
        layer.bias.zero_()
    return layer


def _dense(weight: Tensor, bias: Tensor) -> Callable[[np.ndarray], np.ndarray]:
    # Views of the weights, so what an optimizer does in place is seen.
    across, shift = weight.detach().mT.numpy(), bias.detach().unsqueeze(-2).numpy()
    return lambda x: x @ across + shift


def _in_torch(layers: nn.Sequential) -> Callable[[np.ndarray], np.ndarray]:
    def outputs(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return layers(torch.from_numpy(np.ascontiguousarray(x))).numpy()

    return outputs


def _spans(parameters: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    end = 0
    for parameter in parameters:
        start, end = end, end + parameter.numel()
        yield start, end


def _bounds(space: spaces.Box) -> tuple[np.ndarray, np.ndarray]:
    """Middle and half width of each number of a Box, 0 and 1 for those without bounds. [D], [D]"""
    low, high = space.low.reshape(-1).astype(np.float64), space.high.reshape(-1).astype(np.float64)
    bounded = (low > -1e6) & (high < 1e6) & (high > low)  # some give the largest float for infinity
    low, high = np.where(bounded, low, -1.0), np.where(bounded, high, 1.0)
    middle, half = (low + high) / 2, (high - low) / 2
    return middle.astype(np.float32), half.astype(np.float32)


def shape_of(space: spaces.Space) -> tuple[int, ...]:
    """Return the shape of a space of arrays."""
    assert space.shape is not None
    return space.shape
