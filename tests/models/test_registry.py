"""Every shipped model, through ``build``: shapes, determinism, and each error in one sentence."""

import pytest
import torch

from msfusion.errors import UserError
from msfusion.models import MODELS, InputSpec, build

SMALL: dict[str, dict[str, object]] = {
    "cnn": {"width": 4, "hidden": 8},
    "gpt": {"layers": 2, "heads": 2, "embed": 8},
    "mlp": {"hidden": [8, 6]},
    "resnet18": {"width": 4},
    "vit": {"layers": 2, "heads": 2, "embed": 8},
}
DIGITS = InputSpec((1, 8, 8), torch.float32, 10)
COLOUR = InputSpec((3, 32, 32), torch.float32, 7)
TEXT = InputSpec((12,), torch.int64, 31)


@pytest.mark.parametrize("name", MODELS)
def test_build_returns_a_model_that_takes_its_example(name: str) -> None:
    module, (example,) = build(name, None, SMALL[name])
    logits = module(example)
    assert logits.shape == ((2, 256, 65) if name == "gpt" else (2, 10))
    logits.sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("inputs", [DIGITS, COLOUR])
@pytest.mark.parametrize("name", sorted(MODELS.keys() - {"gpt"}))
def test_the_data_decide_classes_and_channels(name: str, inputs: InputSpec) -> None:
    module, (example,) = build(name, inputs, SMALL[name])
    assert example.shape == (2, *inputs.shape)
    assert module(example).shape == (2, inputs.classes)


def test_the_data_decide_vocabulary_and_block() -> None:
    module, (example,) = build("gpt", TEXT, SMALL["gpt"])
    assert example.dtype == torch.int64
    assert int(example.max()) < 31
    assert module(example).shape == (2, 12, 31)


def test_options_stand_in_for_absent_data() -> None:
    module, (example,) = build("gpt", None, {**SMALL["gpt"], "block": 5, "vocabulary": 9})
    assert module(example).shape == (2, 5, 9)


def test_example_is_the_same_on_every_call_and_leaves_the_global_generator_alone() -> None:
    module, (first,) = build("mlp", DIGITS)
    before = torch.get_rng_state()
    build_only_example = build("mlp", DIGITS)[1][0]
    assert torch.equal(first, build_only_example)
    torch.set_rng_state(before)
    type(module)((64, 64, 64, 10), 0.0)  # the module alone draws as much as build does
    drawn = torch.get_rng_state()
    torch.set_rng_state(before)
    build("mlp", DIGITS)
    assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.parametrize("name", MODELS)
def test_the_caller_seeds_the_parameters(name: str) -> None:
    with torch.random.fork_rng():
        states = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            states.append(torch.cat([p.flatten() for p in build(name, None, SMALL[name])[0].parameters()]))
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[0], states[2])


@pytest.mark.parametrize(
    ("spec", "inputs", "options", "message"),
    [
        ("resnet", None, {}, "got 'resnet': did you mean 'resnet18'?"),
        ("gpt", None, {"head": 3}, "an option of gpt, got 'head': did you mean 'heads'?"),
        ("mlp", None, {"zzz": 3}, "got 'zzz': choose from classes, dropout, hidden, inputs"),
        ("gpt", None, {"heads": 5}, "embed=384 and heads=5: choose embed=380"),
        ("cnn", None, {"width": -1}, "'width' of cnn to be greater than 0, got -1"),
        ("cnn", None, {"dropout": 1.0}, "'dropout' of cnn to be less than 1, got 1.0"),
        ("resnet18", None, {"norm": "layer"}, "to be 'batch' or 'group', got 'layer'"),
        ("vit", None, {"patch": 5}, "image=32 and patch=5"),
        ("gpt", TEXT, {"vocabulary": 9}, "no option 'vocabulary' for gpt, got 9: the data decide it"),
        ("gpt", DIGITS, {}, "token sequences for gpt, got data of shape (1, 8, 8)"),
        ("cnn", TEXT, {}, "images for cnn, got data of shape (12,)"),
        ("mlp", TEXT, {}, "images or vectors for mlp"),
        ("vit", InputSpec((3, 8, 12), torch.float32, 2), {}, "square images for vit"),
    ],
)
def test_errors(spec: str, inputs: InputSpec | None, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as raised:
        build(spec, inputs, options)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("name", "value"), [("width", True), ("dropout", False)])
def test_true_and_false_are_no_numbers(name: str, value: bool) -> None:
    with pytest.raises(UserError, match=f"expected a number for the option '{name}' of cnn"):
        build("cnn", None, {name: value})
