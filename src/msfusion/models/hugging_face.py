"""Models of transformers and timm: ``hf:PATH``, where PATH is a config.json or a folder that holds one, and
``timm:NAME``. Nothing is downloaded, and no code that comes with a model is run."""

import inspect
import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from msfusion.errors import UserError, optional
from msfusion.models.inputs import InputSpec, example
from msfusion.models.meta import parameters_on_meta, without_values
from msfusion.models.options import nearest
from msfusion.models.user_file import Built

PREFIX = "hf:"
TIMM = "timm:"

_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_TASKS = (
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
)
"""What a configuration that names no class is taken for, the first that it can be."""

_LENGTH = 16  # tokens of an example where no data say how many


def build_from_hugging_face(spec: str, inputs: InputSpec | None, options: Mapping[str, object]) -> Built:
    """The model of ``hf:PATH`` or ``hf:PATH#ClassName`` and example inputs in the order of its forward.

    ``options`` are settings of the configuration in place of those in the file. Weights in the folder are
    the start, converted to float32; without them parameters are random. ``UserError`` for a configuration
    that cannot be read, an unknown class or setting, or data that the model does not fit."""
    transformers = _package("transformers")
    config = _config(spec, options)
    kind = _class(transformers, spec, config)
    if inputs is not None:
        _check_data(spec, config, kind.main_input_name, inputs)
    if hasattr(config, "use_cache"):
        config.use_cache = False  # keys and values of earlier tokens serve generation, not training
    folder = _path(spec)
    if folder.is_dir() and not without_values() and any((folder / name).is_file() for name in _WEIGHTS):
        module = _pretrained(kind, folder, config)
    else:
        module = kind(config).float()
    return module, _examples(spec, config, kind, inputs)


def save_pretrained(
    spec: str, options: Mapping[str, object], tensors: Mapping[str, torch.Tensor], out: Path, shard: str
) -> None:
    """Write a folder that ``from_pretrained`` loads: config.json and the weights, in files of at most
    ``shard`` (``"5GB"``) with an index where there are several. ``tensors``: parameter or buffer name -> its
    values, tied ones once. The module is filled with them as they are, without a copy."""
    transformers = _package("transformers")
    config = _config(spec, options)
    kind = _class(transformers, spec, config)
    with parameters_on_meta():
        module = kind(config)
    stored = module.state_dict().keys()
    known = {*stored, *dict(module.named_buffers())}
    module.load_state_dict({k: v for k, v in tensors.items() if k in stored}, strict=False, assign=True)
    module.tie_weights()
    empty = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if empty or tensors.keys() - known:
        raise UserError(
            f"expected the tensors of {spec}, got {_some(tensors.keys() - known)} and lack {_some(empty)}: "
            "export with the configuration that the run was made with"
        )
    with _silent():
        module.save_pretrained(out, max_shard_size=shard)


def stored_names(module: nn.Module, stored: Collection[str]) -> dict[str, str]:
    """Parameter or buffer name -> its name among the ``stored`` ones of a checkpoint: its own, that of a
    tensor tied to it, or the same with or without the prefix of the base model. Those that the checkpoint
    does not hold are left out."""
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    every = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    base = f"{prefix}." if (prefix := getattr(module, "base_model_prefix", "")) else ""
    found = {}
    for name, tensor in own.items():
        names = [name, *(other for other, same in every if same is tensor and other != name)]
        candidates = [*names, *(n.removeprefix(base) for n in names), *(base + n for n in names)]
        match = next((candidate for candidate in candidates if candidate in stored), None)
        if match is not None:
            found[name] = match
    return found


def build_from_timm(spec: str, inputs: InputSpec | None, options: Mapping[str, object]) -> Built:
    """The model of ``timm:NAME`` with random parameters; classes and channels come from the data."""
    timm = _package("timm", "torchvision")
    name = spec.removeprefix(TIMM)
    if name not in timm.list_models():
        raise UserError(f"expected a model of timm, got {name!r}: {nearest(name, timm.list_models())}")
    given = dict(options)
    if inputs is not None:
        if not inputs.is_image:
            raise UserError(f"expected images for {spec}, got data of shape {inputs.shape}: take other data")
        given |= {"num_classes": inputs.classes, "in_chans": inputs.shape[0]}
    try:
        module = timm.create_model(name, pretrained=False, **given)
    except (TypeError, ValueError, AssertionError) as error:
        raise UserError(f"expected options that {spec} takes, got {given}: {error}") from error
    if inputs is None:
        inputs = InputSpec(tuple(module.default_cfg["input_size"]), torch.float32, module.num_classes)
    return module, (example(inputs),)


def _package(name: str, *beside: str) -> Any:
    return optional(name, f"the package {name.partition('.')[0]}", "msfusion[hf]", *beside)


def _path(spec: str) -> Path:
    return Path(spec.removeprefix(PREFIX).rpartition("#")[0] or spec.removeprefix(PREFIX))


def _config(spec: str, options: Mapping[str, object]) -> Any:
    """The configuration in the file with ``options`` over it."""
    known = _package("transformers").CONFIG_MAPPING
    path = _path(spec)
    file = path / "config.json" if path.is_dir() else path
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"expected a config.json or a folder with one behind {PREFIX}, got {str(path)!r}, which "
            f"cannot be read ({error}): correct the path; nothing is downloaded"
        ) from None
    kind = raw.get("model_type") if isinstance(raw, dict) else None
    if kind not in known:
        raise UserError(
            f"expected a model_type that the installed transformers knows in {file}, got {kind!r}: "
            "take a newer transformers, or write the model in a file of your own"
        )
    try:
        config = known[kind].from_dict({**raw, **options})
        for name in options:
            if not hasattr(known[kind](), name):
                others = [key for key in config.to_dict() if key not in options]
                raise UserError(f"expected a setting of {kind}, got {name!r}: {nearest(name, others)}")
    except UserError:
        raise
    except Exception as error:  # transformers checks values in ways of its own, with errors of its own
        text = " ".join(str(error).split())[:300]
        raise UserError(
            f"expected a configuration that transformers accepts, got {text}: correct {file}"
        ) from None
    return config


def _class(transformers: Any, spec: str, config: Any) -> Any:
    """The class that the spec names, else the configuration, else the first task that it serves."""
    tasks_of = _package("transformers.models.auto.modeling_auto")
    _, mark, named = spec.removeprefix(PREFIX).rpartition("#")
    architectures = [name for name in config.architectures or [] if _has_head(name)]
    tasks = [getattr(tasks_of, task, {}).get(config.model_type) for task in _TASKS]
    names = [named] if mark else [*architectures[:1], *(task for task in tasks if isinstance(task, str))]
    for name in names:
        kind = getattr(transformers, name, None)
        if inspect.isclass(kind) and issubclass(kind, nn.Module):
            return kind
    raise UserError(
        f"expected a class of transformers for {spec}, got {names[0] if names else 'none'!r}: name one as "
        f"{PREFIX}PATH#ClassName, e.g. #LlamaForCausalLM"
    )


def _has_head(name: str) -> bool:
    return "For" in name or "LMHead" in name or "With" in name


def _pretrained(kind: Any, folder: Path, config: Any) -> nn.Module:
    with _silent():
        module = kind.from_pretrained(folder, config=config, local_files_only=True, dtype=torch.float32)
    assert isinstance(module, nn.Module)
    return module


@contextmanager
def _silent() -> Iterator[None]:
    """Without the progress bars of transformers."""
    logging = _package("transformers.utils.logging")
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _check_data(spec: str, config: Any, main: str, inputs: InputSpec) -> None:
    if main == "input_ids":
        _expect(
            inputs.is_text, f"token sequences for {spec}", f"data of shape {inputs.shape}", "take other data"
        )
        text = config.get_text_config()
        _at_least(
            spec, "vocab_size", getattr(text, "vocab_size", None), inputs.classes, "the tokens of the data"
        )
        longest = getattr(text, "max_position_embeddings", None)
        _at_least(spec, "max_position_embeddings", longest, inputs.shape[0], "the tokens of an example")
    elif main == "pixel_values":
        _expect(inputs.is_image, f"images for {spec}", f"data of shape {inputs.shape}", "take other data")
        channels, height, width = inputs.shape
        size = getattr(config, "image_size", None)
        wanted = {"num_labels": inputs.classes, "num_channels": channels}
        if size is not None:
            wanted["image_size"] = height
            _expect(height == width, f"square images for {spec}", f"{height}x{width}", "set data.image")
        for name, value in wanted.items():
            got = getattr(config, name, value)
            _expect(
                got == value or got == [value, value],
                f"{name} = {value} in {spec}, as the data have it",
                repr(got),
                f"set model.options.{name}={value}",
            )


def _at_least(spec: str, name: str, got: int | None, least: int, what: str) -> None:
    _expect(
        got is None or got >= least,
        f"{name} of at least {least} in {spec}, {what}",
        repr(got),
        f"set model.options.{name}={least}, or take other data",
    )


def _expect(holds: bool, wanted: str, got: str, remedy: str) -> None:
    if not holds:
        raise UserError(f"expected {wanted}, got {got}: {remedy}")


def _examples(spec: str, config: Any, kind: Any, inputs: InputSpec | None) -> tuple[torch.Tensor, ...]:
    """A batch of two for the first arguments of the forward, up to the last that it needs."""
    needed = [kind.main_input_name] + ["decoder_input_ids"] * bool(config.is_encoder_decoder)
    made = {}
    for name in inspect.signature(kind.forward).parameters:
        if name != "self":
            made[name] = _example(spec, name, config, inputs)
        if made.keys() >= set(needed):
            break
    return tuple(made.values())


def _example(spec: str, name: str, config: Any, inputs: InputSpec | None) -> torch.Tensor:
    if name in ("input_ids", "decoder_input_ids", "attention_mask"):
        text = config.get_text_config()
        length = min(_LENGTH, getattr(text, "max_position_embeddings", None) or _LENGTH)
        tokens = inputs or InputSpec((length,), torch.int64, text.vocab_size)
        return (
            torch.ones(2, *tokens.shape, dtype=torch.int64) if name == "attention_mask" else example(tokens)
        )
    if name == "pixel_values":
        size = getattr(config, "image_size", None) or 224
        height, width = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(config, "num_channels", 3)
        return example(inputs or InputSpec((channels, height, width), torch.float32, config.num_labels))
    if name == "input_features" and hasattr(config, "num_mel_bins"):
        frames = 2 * config.max_source_positions
        return example(InputSpec((config.num_mel_bins, frames), torch.float32, 1))
    raise UserError(
        f"expected a model whose inputs follow from its configuration, got {spec}, which takes {name}: "
        "write a function that returns (model, example_inputs), and name it as path/to/file.py:function"
    )


def _some(names: Collection[str]) -> str:
    return ", ".join(sorted(names)[:3]) or "nothing else"
