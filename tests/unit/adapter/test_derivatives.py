"""What differentiates a layer in another way than training does: gradients of gradients, and torch.func's transforms."""

from __future__ import annotations

import pytest
import torch
from torch.func import functional_call, grad, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from mora.adapter import kernels


def of_a_penalty(model, x):
    """The gradients of the norm of an input's gradient, with a loss that is no sum."""
    (dx,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return torch.autograd.grad(dx.square().sum(), trained(model).values())


def of_a_penalty_on_a_sum(model, x):
    """The gradient of the output is then a constant: what is differentiated again is M alone."""
    (dx,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    dx.square().sum().backward()
    return [M.grad for M in trained(model).values()]


def of_the_step(model, x):
    """The gradients of the norm of M's own gradient."""
    first = torch.autograd.grad(model(x).pow(3).mean(), trained(model).values(), create_graph=True)
    return torch.autograd.grad(sum(dM.square().sum() for dM in first), trained(model).values())


def of_parameters(model, x):
    return grad(lambda M: functional_call(model, M, (x,)).square().sum())(trained(model)).values()


def of_parameters_compiled(model, x):
    compiled = torch.compile(grad(lambda M: functional_call(model, M, (x,)).square().sum()), backend="eager")
    return compiled(trained(model)).values()


def of_each_row(model, x):
    return (vmap(model)(x.detach()),)


def of_an_input(model, x):
    return (jacrev(model)(x.detach()[0]),)


def along_a_direction(model, x):
    return jvp(model, (x.detach(),), (torch.ones_like(x),))


def trained(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


SECOND = [of_a_penalty, of_a_penalty_on_a_sum, of_the_step]
DERIVATIVES = [*SECOND, of_parameters, of_each_row, of_an_input, along_a_direction]


@pytest.fixture(params=["sharing", "rotation"])
def model(request, make_mlp, adapt):
    return adapt(make_mlp(), operator=request.param)


@pytest.mark.parametrize("derivative", [*DERIVATIVES, of_parameters_compiled])
def test_the_fused_form_names_the_layer_and_the_form_that_has_the_derivative(derivative, model, x):
    with pytest.raises(
        RuntimeError, match=r"MoRA layer (20|32) -> 32 \(\w+, r_hat=1\d\) .* set MORA_KERNELS=reference"
    ):
        derivative(model, x.requires_grad_())


@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_in_the_reference_form_every_derivative_is_there(derivative, model, x):
    """It is that of the form of plain products."""
    found = {}
    for form in ("reference", "products"):
        model.zero_grad()
        with kernels.use(form):
            found[form] = list(derivative(model, x.requires_grad_()))
    assert all(value.any() for value in found["reference"])
    torch.testing.assert_close(found["reference"], found["products"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_a_gradient_with_a_graph_is_the_one_without_and_may_be_changed(model, x, checkpointed):
    M = list(trained(model).values())
    expected = torch.autograd.grad(model(x).square().sum(), M)
    y = checkpoint(model, x, use_reentrant=False) if checkpointed else model(x)
    y.square().sum().backward(create_graph=True)
    assert all(torch.equal(own.grad, other) for own, other in zip(M, expected, strict=True))
    torch.optim.SGD(M).zero_grad(set_to_none=False)
    assert not any(own.grad.any() for own in M)
