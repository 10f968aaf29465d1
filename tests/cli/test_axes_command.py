"""Axes from the command line: shown, proved, declared by hand; and models of transformers, trained."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from msfusion import cli
from msfusion.config import load
from msfusion.data import load as load_data
from msfusion.models import build
from msfusion.runtimes import checkpoint

Answer = tuple[int, str, str]
"""Exit code, standard output, standard error."""

MODELS = """
import torch
from torch import nn


if not hasattr(torch.ops.msfusion_cli, "mystery"):  # the file is run for every test

    @torch.library.custom_op("msfusion_cli::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x.sigmoid() * x

    @mystery.register_fake
    def _(x):
        return torch.empty_like(x)

    def keep(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return gradient * (x.sigmoid() + x * x.sigmoid() * (1 - x.sigmoid()))

    mystery.register_autograd(backward, setup_context=keep)


class Net(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.a, self.b, self.middle = nn.Linear(64, 16), nn.Linear(16, 10), middle

    def forward(self, x):
        return self.b(self.middle(self.a(x.flatten(1))))


class Order(nn.Module):
    def forward(self, x):
        return x.cumsum(-1)


class Mystery(nn.Module):
    def forward(self, x):
        return torch.ops.msfusion_cli.mystery(x)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x)


def noisy():
    return Net(Noise()), torch.randn(2, 64)


def ordered():
    return Net(Order()), torch.randn(2, 64)


def mysterious():
    return Net(Mystery()), torch.randn(2, 64)
"""
HIDDEN = """
[model.axes]
"a.weight" = ["h:16", "64"]
"a.bias" = ["h:16"]
"b.weight" = ["10", "h:16"]
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Calls the command line in this process."""

    def call(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["msfusion", *map(str, arguments)])
        try:
            cli.main()
            code: Any = 0
        except SystemExit as end:
            code = end.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def models(tmp_path: Path) -> Path:
    path = tmp_path / "models.py"
    path.write_text(MODELS)
    return path


@pytest.fixture
def declared(tmp_path: Path) -> Path:
    path = tmp_path / "axes.toml"
    path.write_text(HIDDEN)
    return path


def test_the_table_says_what_is_never_cut_and_why(run: Callable[..., Answer]) -> None:
    code, out, err = run("axes", "gpt", "--option", "layers=1")
    assert (code, err) == (0, "")
    assert "tokens.out" in out
    assert "output of the model" in out
    assert "head.weight:0" in out
    assert "more" in out


def test_a_right_map_is_proved(run: Callable[..., Answer]) -> None:
    code, out, err = run("axes", "gpt", "--option", "layers=1", "--option", "embed=48", "--check", "--json")
    assert (code, err) == (0, "")
    proof = json.loads(out)["check"]
    assert all(one["right"] and one["permuted"] < 1e-10 for one in proof.values())
    silenced = {name for name, one in proof.items() if one["silenced"] is not None}
    assert silenced == {"blocks.0.attention.qkv.out", "blocks.0.feed_forward.expand.out"}

    code, out, err = run("axes", "gpt", "--option", "layers=1", "--option", "embed=48", "--check")
    assert (code, err) == (0, "")
    assert out.count("right") == len(proof) + 1


def test_what_cannot_be_cut_names_the_operation(run: Callable[..., Answer], models: Path) -> None:
    for json_ in ((), ("--json",)):
        code, out, err = run("axes", f"{models}:ordered", *json_)
        assert (code, out) == (2, "")
        assert err.startswith("error: expected a model with an axis that can be cut, got none: cumsum")
        assert err.count("\n") == 1
    code, _, err = run("axes", f"{models}:mysterious")
    assert code == 2
    assert "no rule for msfusion_cli.mystery.default pins a.weight:0, a.bias:0" in err


def test_a_right_declaration_is_proved(run: Callable[..., Answer], models: Path, declared: Path) -> None:
    code, out, err = run("axes", f"{models}:mysterious", "--axes", declared, "--check", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["axes"] == {"h": [16, False, None]}
    assert json.loads(out)["check"]["h"]["right"]
    code, out, _ = run("axes", f"{models}:mysterious", "--axes", declared)
    assert code == 0
    assert "operations without a rule, all that they touch stays whole: msfusion_cli.mystery.default" in out
    code, out, _ = run(
        "plan", f"{models}:mysterious", "--axes", declared, "--participants", 4, "--width", 0.5, "--json"
    )
    assert code == 0
    assert json.loads(out)["plans"][0]["widths"] == {"h": [8, 16]}


def test_a_wrong_declaration_is_caught(run: Callable[..., Answer], models: Path, declared: Path) -> None:
    code, out, err = run("axes", f"{models}:ordered", "--axes", declared, "--check")
    assert (code, err) == (1, "wrong: h\n")
    assert "WRONG" in out
    code, out, _ = run("axes", f"{models}:ordered", "--axes", declared, "--check", "--json")
    assert code == 1
    found = json.loads(out)["check"]["h"]
    assert found["permuted"] > 1e-3
    assert found["silenced"] > 1e-3


def test_noise_that_does_not_move_with_the_units_proves_nothing(
    run: Callable[..., Answer], models: Path
) -> None:
    code, out, err = run("axes", f"{models}:noisy", "--check", "--json")
    assert code == 1
    assert json.loads(out)["check"]["a.out"]["right"] is None
    assert err.startswith("not proved, as the forward draws random numbers")
    assert err.endswith(": a.out\n")


def test_declarations_that_are_none(run: Callable[..., Answer], tmp_path: Path) -> None:
    for text, message in [
        ('"zzz" = ["3"]', "match a parameter or buffer"),
        ('"head.bias" = "3"', "head.bias"),
        ("=", "TOML"),
    ]:
        (tmp_path / "axes.toml").write_text(text)
        code, out, err = run("axes", "mlp", "--axes", tmp_path / "axes.toml")
        assert (code, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
    assert run("axes", "mlp", "--axes", tmp_path / "absent.toml")[0] == 2


def test_a_run_uses_declared_axes(run: Callable[..., Answer], models: Path, tmp_path: Path) -> None:
    preset = tmp_path / "run.toml"
    preset.write_text(
        f'participants = 3\nwidth = 0.5\nrounds = 1\n[model]\nname = "{models}:mysterious"\n'
        + HIDDEN
        + '[data]\nname = "digits"\nlimit = 90\ntest_limit = 30\n[train]\nsteps = 2\n'
    )
    assert run("simulate", preset, "--out", tmp_path / "run", "--json")[0] == 0
    header = json.loads((tmp_path / "run" / "records.jsonl").read_text().splitlines()[0])
    assert header["model"]["axes"] == {"h": 16}


# --- models of transformers


GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 40,
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 16,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}


@pytest.fixture
def text_run(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    (tmp_path / "hf").mkdir()
    preset = tmp_path / "run.toml"
    preset.write_text(
        "participants = 2\nwidth = 0.5\nrounds = 2\n"
        f'[model]\nname = "hf:{tmp_path}/hf"\n'
        f'[data]\nname = "text"\npath = "{tmp_path}/text.txt"\nblock = 12\ntest_limit = 9\n'
        '[train]\noptimizer = "adamw"\nlr = 1e-2\nsteps = 3\nbatch = 4\n'
    )
    return preset


@pytest.mark.filterwarnings("ignore")  # transformers warns about itself
@pytest.mark.parametrize("config", [GPT2, pytest.param(LLAMA, marks=pytest.mark.slow)])
def test_a_model_of_transformers_is_trained_exported_and_loaded(
    config: dict[str, Any], run: Callable[..., Answer], text_run: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    code, out, _ = run("simulate", text_run, "--out", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(out)["loss"] < 3.5  # of at least 28 characters and a vocabulary of 40: ln 40 is 3.7
    assert run("export", tmp_path / "run", tmp_path / "out", "--shard", "5KB", "--json")[0] == 0
    loaded, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(info.values())
    settings = load(str(text_run))
    data = load_data(settings.data, settings.participants, settings.seed)
    module, example = build(settings.model.name, data.inputs)
    tensors, _ = checkpoint.load(tmp_path / "run")
    values = {name.removeprefix("model/"): tensor for name, tensor in tensors.items()}
    module.load_state_dict(values, strict=False)
    assert torch.equal(loaded(*example).logits, module.eval()(*example).logits)

    code, _, err = run("export", tmp_path / "run", tmp_path / "out")
    assert code == 2
    assert "empty or absent" in err.splitlines()[-1]


def test_a_vocabulary_smaller_than_the_datas_is_refused(
    run: Callable[..., Answer], text_run: Path, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": 9}))
    code, _, err = run("simulate", text_run)
    assert code == 2
    assert "vocab_size of at least 28" in err


def test_only_models_of_transformers_are_written_as_folders(
    run: Callable[..., Answer], tmp_path: Path
) -> None:
    preset = tmp_path / "run.toml"
    preset.write_text(
        'participants = 2\nwidth = 0.5\nrounds = 1\n[model]\nname = "mlp"\n'
        '[data]\nname = "digits"\nlimit = 90\ntest_limit = 30\n[train]\nsteps = 1\n'
    )
    assert run("simulate", preset, "--out", tmp_path / "run", "--json")[0] == 0
    code, out, err = run("export", tmp_path / "run", tmp_path / "folder")
    assert (code, out) == (2, "")
    assert "folder.safetensors for mlp" in err
