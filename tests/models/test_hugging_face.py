"""Models of transformers from a configuration alone, trained, exported and loaded again."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from msfusion.capture import capture
from msfusion.errors import UserError
from msfusion.learn.disk_store import DiskStore
from msfusion.learn.store import MemoryStore
from msfusion.models import InputSpec, build, build_without_values
from msfusion.models.hugging_face import save_pretrained, stored_names

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about itself

TEXT: dict[str, Any] = {"vocab_size": 31, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GPT2 = {
    **TEXT,
    "model_type": "gpt2",
    "n_embd": 16,
    "n_layer": 1,
    "n_head": 2,
    "n_positions": 12,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
}
LLAMA = {
    **TEXT,
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 12,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 1,
    "num_labels": 10,
}
BERT = {**LLAMA, "model_type": "bert", "architectures": ["BertForSequenceClassification"]}
T5 = {
    **TEXT,
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
WHISPER = {
    **TEXT,
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_source_positions": 10,
    "max_target_positions": 16,
    "num_mel_bins": 8,
    "decoder_start_token_id": 1,
}
CONFIGS = {
    "GPT2LMHeadModel": GPT2,
    "LlamaForCausalLM": LLAMA,
    "ViTForImageClassification": VIT,
    "BertForSequenceClassification": BERT,
    "T5ForConditionalGeneration": T5,
    "WhisperForConditionalGeneration": WHISPER,
}
TOKENS = InputSpec((7,), torch.int64, 31)


def write(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return f"hf:{folder}"


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_gives_a_model_and_its_example(name: str, tmp_path: Path) -> None:
    spec = write(tmp_path, CONFIGS[name])
    for path in (spec, f"{spec}/config.json"):
        module, example = build(path, None)
        assert type(module).__name__ == name
        assert module(*example).logits.shape[0] == 2
        assert all(p.dtype is torch.float32 for p in module.parameters())
    assert module(*example).get("past_key_values") is None
    axes = capture(module, example).axes
    assert axes.cuttable
    without, _ = build_without_values(spec, None)
    assert all(p.is_meta for p in without.parameters())
    assert not any(b.is_meta for b in without.buffers())
    assert capture(without, example).axes == axes


def test_the_class_can_be_named(tmp_path: Path) -> None:
    spec = write(tmp_path, BERT)
    assert type(build(f"{spec}#BertForMaskedLM", None)[0]).__name__ == "BertForMaskedLM"
    config = write(tmp_path, {**GPT2, "architectures": ["GPT2Model"]})  # it has no head
    assert type(build(config, None)[0]).__name__ == "GPT2LMHeadModel"


def test_options_are_settings_of_the_configuration(tmp_path: Path) -> None:
    module, _ = build(write(tmp_path, LLAMA), None, {"num_hidden_layers": 2, "tie_word_embeddings": True})
    assert len(module.model.layers) == 2
    assert module.lm_head.weight is module.model.embed_tokens.weight


def test_data_give_the_example(tmp_path: Path) -> None:
    module, (example,) = build(write(tmp_path, LLAMA), InputSpec((7,), torch.int64, 20))
    assert example.shape == (2, 7)
    assert int(example.max()) < 20
    assert module(example).logits.shape == (2, 7, 31)


@pytest.mark.parametrize(
    ("config", "inputs", "options", "message"),
    [
        (LLAMA, InputSpec((7,), torch.int64, 65), {}, "vocab_size of at least 65"),
        (GPT2, InputSpec((13,), torch.int64, 31), {}, "max_position_embeddings of at least 13"),
        (
            LLAMA,
            InputSpec((7,), torch.int64, 65),
            {},
            "got 31: set model.options.vocab_size=65, or take other",
        ),
        (LLAMA, InputSpec((1, 8, 8), torch.float32, 10), {}, "token sequences"),
        (VIT, TOKENS, {}, "images for"),
        (VIT, InputSpec((1, 8, 8), torch.float32, 7), {}, "num_labels = 7"),
        (VIT, InputSpec((3, 8, 8), torch.float32, 10), {}, "num_channels = 3"),
        (VIT, InputSpec((1, 8, 16), torch.float32, 10), {}, "got 8x16: set data.image"),
        (VIT, InputSpec((1, 16, 16), torch.float32, 10), {}, "got 8: set model.options.image_size=16"),
        (LLAMA, None, {"num_hidden_layer": 2}, "did you mean 'num_hidden_layers'?"),
        (LLAMA, None, {"hidden_size": "x"}, "a configuration that transformers accepts"),
        ({"model_type": "unheard of"}, None, {}, "a model_type that the installed transformers knows"),
        ({**LLAMA, "model_type": "wav2vec2"}, None, {}, "a class of transformers"),
    ],
)
def test_refusals(
    config: dict[str, Any], inputs: InputSpec | None, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as raised:
        build(write(tmp_path, config), inputs, options)
    assert "\n" not in str(raised.value)


def test_more_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="nothing is downloaded"):
        build("hf:gpt2-of-no-folder", None)
    spec = write(tmp_path, LLAMA)
    with pytest.raises(UserError, match="got 'LlamaForNothing'"):
        build(f"{spec}#LlamaForNothing", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r'pip install "msfusion\[hf\]"'):
        build(spec, None)


@pytest.mark.parametrize(("config", "tied"), [(GPT2, True), (LLAMA, False), (LLAMA, True), (VIT, False)])
def test_what_is_saved_loads_with_no_key_missing_or_left(
    config: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    spec = write(tmp_path / "config", {**config, "tie_word_embeddings": tied})
    module, example = build(spec, None)
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    save_pretrained(spec, {}, tensors, tmp_path / "out", "4KB")
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    loaded, info = type(module).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(loaded(*example).logits, module.eval()(*example).logits)
    if tied:
        assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    again, _ = build(f"hf:{tmp_path / 'out'}", None)  # the weights in a folder are the start
    assert torch.equal(again.eval()(*example).logits, module(*example).logits)


def test_tensors_of_another_configuration_are_not_saved(tmp_path: Path) -> None:
    spec = write(tmp_path / "config", LLAMA)
    module, _ = build(spec, None)
    tensors = dict(module.named_parameters())
    with pytest.raises(UserError, match=r"lack model\.layers\.1"):
        save_pretrained(spec, {"num_hidden_layers": 2}, tensors, tmp_path / "out", "5GB")


@pytest.mark.parametrize("base_only", [False, True])
@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_a_sharded_pretrained_checkpoint_is_trained_further(
    config: dict[str, Any], base_only: bool, tmp_path: Path
) -> None:
    """Slices of it are what a model in memory gives, also where the checkpoint is of the model without its
    head, whose names lack a prefix."""
    torch.manual_seed(0)
    spec = write(tmp_path / "config", {**config, "tie_word_embeddings": True})
    module, example = build(spec, None)
    saved = module.base_model if base_only else module
    saved.save_pretrained(tmp_path / "pretrained", max_shard_size="4KB")
    skeleton, _ = build_without_values(f"hf:{tmp_path / 'pretrained'}#{type(module).__name__}", None)
    axes = capture(skeleton, example).axes
    index = json.loads((tmp_path / "pretrained" / "model.safetensors.index.json").read_text())
    names = frozenset(name for name, _ in skeleton.named_parameters())
    disk = DiskStore(
        tmp_path / "pretrained",
        tmp_path / "store",
        axes,
        names,
        names=stored_names(skeleton, index["weight_map"]),
        buffers=dict(skeleton.named_buffers()),
    )
    values = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    memory = MemoryStore({name: value.detach() for name, value in values.items()}, axes, names)
    windows = {name: ((0, axes.axes[name].size // 2),) for name in axes.cuttable}
    pulled, wanted = disk.pull(0, windows), memory.pull(0, windows)
    assert pulled.keys() == wanted.keys()
    assert all(torch.equal(pulled[name], wanted[name]) for name in wanted)


def test_timm_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="expected the package timm"):
        build("timm:vit_tiny_patch16_224", None)


def test_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its calls, on a stand-in: the package itself cannot be imported everywhere."""

    def create_model(name: str, pretrained: bool, num_classes: int = 4, in_chans: int = 3) -> nn.Module:
        assert (name, pretrained) == ("net", False)
        module = nn.Sequential(nn.Flatten(), nn.Linear(in_chans * 16, num_classes))
        module.default_cfg, module.num_classes = {"input_size": (3, 4, 4)}, num_classes
        return module

    stand_in = ModuleType("timm")
    vars(stand_in).update(vars(SimpleNamespace(create_model=create_model, list_models=lambda: ["net"])))
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    module, (example,) = build("timm:net", None)
    assert module(example).shape == (2, 4)
    module, (example,) = build("timm:net", InputSpec((1, 4, 4), torch.float32, 7))
    assert module(example).shape == (2, 7)
    for spec, options, message in [
        ("timm:nett", {}, "did you mean 'net'"),
        ("timm:net", {"depth": 3}, "expected options"),
    ]:
        with pytest.raises(UserError, match=message):
            build(spec, None, options)
    with pytest.raises(UserError, match="expected images"):
        build("timm:net", TOKENS)
