"""Networks: the hand-written gradients against autograd, finite differences, torch's Adam."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from robot_rl.errors import InvalidInputError
from robot_rl.nets import MLP, FlatAdam, FlatParameters, GaussianPolicy, Normalizer
from robot_rl.nets.dense import affine, input_gradient, weight_gradient
from robot_rl.nets.policy import StdKind

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make_mlp(dims: tuple[int, ...], *, layer_norm: bool = False) -> tuple[MLP, FlatParameters]:
    net = MLP("net", dims[0], dims[1:-1], dims[-1], layer_norm=layer_norm)
    parameters = FlatParameters(net.shapes(), CPU)
    net.bind(parameters)
    net.initialise(torch.Generator().manual_seed(1))
    return net, parameters


def autograd_mlp(values: dict[str, Tensor], dims: tuple[int, ...], x: Tensor, norm: bool) -> Tensor:
    """The same network written with differentiable torch functions."""
    last = len(dims) - 2
    for index in range(last + 1):
        x = x @ values[f"net.{index}.weight"] + values[f"net.{index}.bias"]
        if index < last:
            if norm:
                scale, shift = values[f"net.{index}.scale"], values[f"net.{index}.shift"]
                x = torch.nn.functional.layer_norm(x, x.shape[1:], scale, shift)
            x = torch.relu(x)
    return x


@pytest.mark.parametrize("width", [1, 2, 6, 15, 16, 33])
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_products_equal_matmul(width: int, batch: int) -> None:
    x, weight, bias = normal(batch, 20), normal(20, width, seed=1), normal(width, seed=2)
    gradient, out = normal(batch, width, seed=3), torch.empty(20, width)
    with torch.inference_mode():
        torch.testing.assert_close(
            affine(x, weight, bias, relu=True), torch.relu(x @ weight + bias), atol=1e-5, rtol=1e-5
        )
        torch.testing.assert_close(
            input_gradient(gradient, weight), gradient @ weight.T, atol=1e-5, rtol=1e-5
        )
        weight_gradient(x, gradient, out)
        torch.testing.assert_close(out, x.T @ gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("dims", [(5, 32, 24, 1), (7, 16, 3), (4, 9)])
def test_backward_equals_autograd(dims: tuple[int, ...], layer_norm: bool) -> None:
    net, parameters = make_mlp(dims, layer_norm=layer_norm)
    x, gradient = normal(40, dims[0]), normal(40, dims[-1], seed=2)
    with torch.inference_mode():
        output, tape = net.forward_tape(x)
        input_grad = net.backward(gradient, tape, input_wanted=True)
        assert torch.equal(output, net.forward(x))

    values = {name: parameters.view(name).clone().requires_grad_() for name in parameters}
    leaf = x.clone().requires_grad_()
    expected = autograd_mlp(values, dims, leaf, layer_norm)
    expected.backward(gradient)
    torch.testing.assert_close(output.clone(), expected.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(input_grad, leaf.grad, atol=1e-5, rtol=1e-5)
    for name, value in values.items():
        torch.testing.assert_close(parameters.grad_view(name), value.grad, atol=1e-4, rtol=1e-4)


def test_backward_equals_finite_differences() -> None:
    dims = (3, 8, 8, 2)
    net, parameters = make_mlp(dims)
    parameters.data = parameters.data.double()
    parameters.grad = parameters.grad.double()
    net.bind(parameters)
    x, direction = normal(12, 3).double(), normal(12, 2, seed=1).double()
    _, tape = net.forward_tape(x)
    net.backward(direction, tape)
    for name in parameters:
        view = parameters.view(name).view(-1)
        for index in (0, view.numel() - 1):
            here = view[index].item()
            sums = []
            for shift in (1e-6, -1e-6):
                view[index] = here + shift
                sums.append((net.forward(x) * direction).sum().item())
            view[index] = here
            slope = (sums[0] - sums[1]) / 2e-6
            assert parameters.grad_view(name).view(-1)[index].item() == pytest.approx(
                slope, rel=1e-5, abs=1e-7
            )


@pytest.mark.parametrize("kind", ["fixed", "learned", "state"])
def test_policy_backward_equals_autograd(kind: StdKind) -> None:
    policy = GaussianPolicy(
        "net", 5, (16, 16), 3, std_kind=kind, std=0.3, log_std_range=(-4.0, 1.0)
    )
    parameters = FlatParameters(policy.shapes(), CPU)
    policy.bind(parameters)
    policy.initialise(torch.Generator().manual_seed(0))
    parameters.data.add_(0.1 * normal(parameters.data.numel()))
    x, d_mean, d_log_std = normal(20, 5), normal(20, 3, seed=1), normal(20, 3, seed=2)
    with torch.inference_mode():
        mean, log_std, tape = policy.forward_tape(x)
        policy.backward(d_mean, d_log_std, tape)

    values = {name: parameters.view(name).clone().requires_grad_() for name in parameters}
    output = autograd_mlp(values, (5, 16, 16, policy.net.dims[-1]), x, False)
    raw = values["net.log_std"] if kind == "learned" else output[:, 3:]
    wanted_log_std = -4.0 + 5.0 * torch.sigmoid(raw)
    total = (torch.tanh(output[:, :3]) * d_mean).sum()
    if kind != "fixed":
        total = total + (wanted_log_std * d_log_std).sum()
        torch.testing.assert_close(log_std.clone(), wanted_log_std.detach())
    total.backward()
    assert mean.abs().max() <= 1.0
    for name, value in values.items():
        torch.testing.assert_close(parameters.grad_view(name), value.grad, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["fixed", "learned", "state"])
def test_policy_starts_near_zero_with_the_given_std(kind: StdKind) -> None:
    policy = GaussianPolicy("p", 4, (32, 32), 2, std_kind=kind, std=0.25, log_std_range=(-5.0, 0.5))
    parameters = FlatParameters(policy.shapes(), CPU)
    policy.bind(parameters)
    policy.initialise(torch.Generator().manual_seed(0))
    mean, log_std = policy.forward(normal(100, 4))
    assert mean.abs().max() < 0.05
    torch.testing.assert_close(
        log_std.exp().expand(100, 2), torch.full((100, 2), 0.25), atol=0.02, rtol=0.0
    )


def test_adam_equals_torch() -> None:
    ours = normal(50)
    theirs = ours.clone().requires_grad_()
    adam, reference = FlatAdam(ours, 1e-2), torch.optim.Adam([theirs], lr=1e-2)
    for step in range(20):
        gradient = normal(50, seed=step + 1)
        theirs.grad = gradient.clone()
        adam.step(gradient)
        reference.step()
    torch.testing.assert_close(ours, theirs.detach(), atol=1e-6, rtol=1e-5)


def test_flat_parameters_are_aligned_and_disjoint() -> None:
    parameters = FlatParameters({"a.x": (3, 5), "a.y": (1,), "b.x": (17,)}, CPU)
    for value, name in enumerate(parameters, start=1):
        assert parameters.view(name).data_ptr() % 64 == parameters.data.data_ptr() % 64
        parameters.view(name).fill_(value)
    assert parameters.data.sum() == 15 * 1 + 1 * 2 + 17 * 3
    assert parameters.data[parameters.span("b.")].sum() == 17 * 3
    with pytest.raises(KeyError, match=r"starts with 'c'; names: a\.x, a\.y, b\.x"):
        parameters.span("c")


def test_padding_stays_zero_under_adam() -> None:
    net, parameters = make_mlp((3, 5, 1))
    adam = FlatAdam(parameters.data, 0.1)
    for _ in range(3):
        output, tape = net.forward_tape(normal(8, 3))
        net.backward(torch.ones_like(output), tape)
        adam.step(parameters.grad)
    used = sum(parameters.view(name).abs().sum() for name in parameters)
    torch.testing.assert_close(parameters.data.abs().sum(), torch.as_tensor(used))


def test_normalizer_standardises_with_a_floor_and_clips() -> None:
    values = normal(5000, 3).double() * torch.tensor([2.0, 1e-6, 0.5]) + 3.0
    normalizer = Normalizer("observation", 3, CPU)
    normalizer.fit(values.numpy())
    result = normalizer(values.float())
    torch.testing.assert_close(result.mean(0), torch.zeros(3), atol=2e-3, rtol=0.0)
    torch.testing.assert_close(result.std(0)[[0, 2]], torch.ones(2), atol=1e-3, rtol=0.0)
    assert normalizer.std[1].item() == pytest.approx(1e-2)
    far = torch.tensor([[3.0, 3.0, 1e6]])
    assert normalizer(far)[0, 2].item() == 10.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[1.0, 2.0]], r"has shape \(1, 2\); it must be \(N, 3\)"),
        ([[1.0, 2.0, float("nan")]], "not finite"),
    ],
)
def test_normalizer_refuses(values: list[list[float]], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Normalizer("goal", 3, CPU).fit(values)
