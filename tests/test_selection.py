"""The selective mask, freezing, and the mean gradients it is made of."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from models.finetune import freeze_all_but
from models.method import Method, bce
from models.selection import (
    CRITERIA,
    cosine_difference,
    differences,
    random_tensors,
    resolve_k,
    select_tensors,
    top,
)
from utils.errors import UserError
from utils.gradients import mean_gradients
from utils.recipe import Recipe

# Delta1 = |real - biased| and Delta2 = |biased - balanced|, worked out by hand below.
REAL = {"a": [1.0, 1.0], "b": [0.0, 4.0], "c": [2.0], "d": [3.0, 3.0]}
BIASED = {"a": [1.0, 2.0], "b": [0.0, 0.0], "c": [2.0], "d": [0.0, 0.0]}
BALANCED = {"a": [4.0, 4.0], "b": [0.0, 0.0], "c": [7.0], "d": [1.0, 0.0]}


def tensors(values: dict) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value) for name, value in values.items()}


def test_a_case_worked_out_by_hand():
    real, biased, balanced = tensors(REAL), tensors(BIASED), tensors(BALANCED)
    assert differences(real, biased) == {"a": 0.5, "b": 2.0, "c": 0.0, "d": 3.0}
    assert differences(biased, balanced) == {"a": 2.5, "b": 0.0, "c": 5.0, "d": 0.5}
    # ascending c a b d, descending c a d b
    expected = {1: {"c"}, 2: {"a", "c"}, 3: {"a", "c"}, 4: {"a", "b", "c", "d"}}
    for k, chosen in expected.items():
        assert select_tensors(real, biased, balanced, k) == chosen


def test_an_empty_intersection_is_an_empty_set():
    one, two = {"a": torch.tensor([0.0]), "b": torch.tensor([5.0])}, torch.tensor([0.0])
    zero = {"a": two, "b": two}
    balanced = {"a": torch.tensor([0.0]), "b": torch.tensor([1.0])}
    assert select_tensors(one, zero, balanced, 1) == set()  # domain takes a, bias takes b


@st.composite
def three_gradients(draw):
    names = draw(st.lists(st.text("abcxyz.0123", min_size=1), min_size=1, max_size=9, unique=True))
    # few distinct values, so that ties are common
    value = st.lists(st.sampled_from([-2.0, 0.0, 1.0, 1.5]), min_size=2, max_size=2)
    sets = [{name: torch.tensor(draw(value)) for name in names} for _ in range(3)]
    return sets, draw(st.permutations(names)), draw(st.integers(1, len(names)))


@settings(deadline=None, max_examples=150)
@given(three_gradients(), st.sampled_from(sorted(CRITERIA)))
def test_size_bounds_and_parameter_order(case, criterion):
    sets, order, k = case
    chosen = select_tensors(*sets, k, criterion)
    n = len(order)
    assert max(0, 2 * k - n) <= len(chosen) <= k
    assert chosen <= set(order)
    reordered = [{name: gradients[name] for name in order} for gradients in sets]
    assert select_tensors(*reordered, k, criterion) == chosen
    assert select_tensors(*sets, n, criterion) == set(order)


@settings(deadline=None, max_examples=100)
@given(st.dictionaries(st.text("abc", min_size=1), st.sampled_from([0.0, 1.0, 2.0]), min_size=1),
       st.booleans(), st.data())
def test_ties_go_to_the_first_name(values, largest, data):
    k = data.draw(st.integers(1, len(values)))
    chosen = top(values, k, largest=largest)
    assert len(chosen) == k
    for inside in chosen:
        for outside in values.keys() - chosen:
            ahead = (values[inside] - values[outside]) * (1 if largest else -1)
            assert ahead > 0 or (ahead == 0 and inside < outside)


@pytest.mark.parametrize("k", [0, -1, 5, 1.5, math.inf, math.nan, True])
def test_k_out_of_range_is_a_value_error(k):
    with pytest.raises(ValueError, match="whole number from 1 to 4"):
        select_tensors(tensors(REAL), tensors(BIASED), tensors(BALANCED), k)


def test_wrong_gradients_are_value_errors():
    real, biased, balanced = tensors(REAL), tensors(BIASED), tensors(BALANCED)
    with pytest.raises(ValueError, match="same tensors"):
        select_tensors(real, {"a": real["a"]}, balanced, 1)
    with pytest.raises(ValueError, match="d differ in shape"):
        select_tensors(real, biased | {"d": torch.zeros(3)}, balanced, 1)
    with pytest.raises(ValueError, match="difference of b is not finite"):
        select_tensors(real, biased | {"b": torch.tensor([0.0, math.nan])}, balanced, 1)
    with pytest.raises(ValueError, match="criterion"):
        select_tensors(real, biased, balanced, 1, "euclid")


def test_cosine_difference():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    assert cosine_difference(a, b) == pytest.approx(1)
    assert cosine_difference(a, -2 * a) == pytest.approx(2)
    assert cosine_difference(a, 7 * a) == pytest.approx(0)
    zero = torch.zeros(1, 2)
    assert cosine_difference(a, zero) == cosine_difference(zero, zero) == 0
    tiny = torch.full((1, 2), 1e-30)  # its square is no float32
    assert cosine_difference(tiny, torch.tensor([[1e-30, 0.0]])) == pytest.approx(1 - 2**-0.5)


@pytest.mark.parametrize(("k", "number"), [(0.887, 55), (55, 55), (55.0, 55), (1, 1), (62, 62)])
def test_top_k_of_resnet18(k, number):
    assert resolve_k(k, 62) == number


@pytest.mark.parametrize("k", [63, 0.001, 40.5, 1e6])
def test_top_k_out_of_range_names_the_flag(k):
    with pytest.raises(UserError, match="--top-k"):
        resolve_k(k, 62)


def test_random_draws_are_not_parts_of_each_other():
    names = [f"t{i}" for i in range(62)]
    draws = [random_tensors(names, size, seed=3) for size in (25, 34, 43, 53)]
    assert not any(one <= other for i, one in enumerate(draws) for other in draws[i + 1:])
    assert random_tensors(names, 53, seed=3, control=True) != draws[-1]


def test_random_tensors():
    names = [f"t{i}" for i in range(20)]
    chosen = random_tensors(names, 7, seed=3)
    assert len(chosen) == 7
    assert chosen == random_tensors(names[::-1], 7, seed=3)
    assert chosen != random_tensors(names, 7, seed=4)
    for size in (0, 21):
        with pytest.raises(ValueError, match="size"):
            random_tensors(names, size, seed=0)


# --- freezing and gradients ----------------------------------------------------------------------


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 1)
    )


def batches(number: int, seed: int = 1) -> list[tuple]:
    generator = torch.Generator().manual_seed(seed)
    unknown = torch.full((6,), -1)
    return [
        (
            torch.arange(6), torch.randn(6, 3, 8, 8, generator=generator),
            torch.randint(2, (6,), generator=generator), unknown,
        )
        for _ in range(number)
    ]  # fmt: skip


@pytest.mark.parametrize("frozen_batch_norm", [False, True])
def test_unselected_tensors_do_not_move_by_a_bit(frozen_batch_norm):
    model, selected = network(), {"0.weight", "1.bias"}
    freeze_all_but(model, selected)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = Recipe(epochs=1, lr=0.1, momentum=0.9, weight_decay=0.1)
    method = Method(model, recipe, frozen_batch_norm=frozen_batch_norm)
    for batch in batches(4):
        method.train_mode()
        method.update(batch)
    moved = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    buffers = {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert moved == selected if frozen_batch_norm else moved == selected | buffers


def test_freezing_refuses_an_empty_selection_and_unknown_names():
    with pytest.raises(UserError, match="--top-k"):
        freeze_all_but(network(), set())
    with pytest.raises(ValueError, match="9.weight"):
        freeze_all_but(network(), {"0.weight", "9.weight"})


def test_mean_gradients_are_those_of_the_mean_of_the_batch_losses():
    model, data = network().eval(), batches(3)
    model[4].bias.requires_grad_(False)  # a frozen tensor's gradient is wanted all the same
    before = {name: value.clone() for name, value in model.state_dict().items()}
    ours = mean_gradients(model, iter(data), bce, count=3, name="test")
    twin = network().train()
    loss = sum(
        nn.functional.binary_cross_entropy(torch.sigmoid(twin(x).flatten().double()), y.double())
        for _, x, y, _ in data
    )
    names, parameters = zip(*twin.named_parameters(), strict=True)
    expected = torch.autograd.grad(loss / 3, parameters)
    assert list(ours) == list(names)
    for name, gradient in zip(names, expected, strict=True):
        # a bias before a batch norm has no gradient but rounding: hence the absolute tolerance
        torch.testing.assert_close(ours[name], gradient, rtol=1e-4, atol=1e-6)
        assert ours[name].dtype == torch.float32
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not model[4].bias.requires_grad
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("count", [2, 4])
def test_mean_gradients_count_their_batches(count):
    with pytest.raises(ValueError, match="3 batches instead of"):
        mean_gradients(network(), iter(batches(3)), bce, count=count, name="test")
