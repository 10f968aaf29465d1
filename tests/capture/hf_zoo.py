"""Models of transformers, small and with random values; see ``zoo`` for the fields of a row."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from zoo import Inputs, Row

TEXT = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 88,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED = {**TEXT, "num_key_value_heads": 2}
GPT2 = {"vocab_size": 61, "n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 64}
FALCON = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
PATCHES = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
SEQUENCES = {
    "vocab_size": 61,
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
STAGES = {"embedding_size": 16, "depths": [1, 2, 1, 1]}

FLOAT32 = 1e-5  # models that compute norms in float32 whatever they are given


def ids(batch: int, length: int = 7, high: int = 61) -> torch.Tensor:
    return torch.randint(3, high, (batch, length))


def text(batch: int) -> dict[str, Any]:
    return {"input_ids": ids(batch, batch + 5)}


def both_texts(batch: int) -> dict[str, Any]:
    return {"input_ids": ids(batch, batch + 5), "decoder_input_ids": ids(batch, batch + 3)}


def pixels(batch: int) -> dict[str, Any]:
    return {"pixel_values": torch.randn(batch, 3, 32, 32)}


def speech(batch: int) -> dict[str, Any]:
    return {"input_features": torch.randn(batch, 80, 20), "decoder_input_ids": ids(batch, batch + 3)}


def wave(batch: int) -> dict[str, Any]:
    return {"input_values": torch.randn(batch, 800)}


def row(
    name: str,
    config: dict[str, Any],
    cuttable: int,
    residual: tuple[str, ...],
    inputs: Callable[[int], dict[str, Any]] = text,
    tolerance: float = 1e-9,
    unsilenced: tuple[str, ...] = (),
    **more: Any,
) -> Row:
    """``name``: the classes of configuration and model, both without what they have in common, e.g.
    ``Llama ForCausalLM``, or with a blank of their own: ``Gemma3 ForCausalLM Gemma3Text``."""
    prefix, kind, *own = name.split()
    config = {**config, **more}

    def model() -> nn.Module:
        transformers = pytest.importorskip("transformers")
        made = getattr(transformers, f"{(own or [prefix])[0]}Config")(**config)
        made.use_cache = False  # keys and values of earlier tokens
        module: nn.Module = getattr(transformers, prefix + kind)(made)
        return module

    def call(batch: int) -> Inputs:
        named = inputs(batch)
        return (tuple(named.values()), {}) if len(named) == 1 else ((), named)

    return Row(name, model, call, cuttable, residual, (*residual, *unsilenced), tolerance)


EMBED = ("model.embed_tokens.out",)

HF_ROWS = [
    row("GPT2 LMHeadModel", GPT2, 3, ("transformer.wte.out",)),
    row("Llama ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32),
    row("Mistral ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32, sliding_window=4),
    row("Qwen2 ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32),
    row("Qwen3 ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32, head_dim=8),
    row("Gemma2 ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32, head_dim=16),
    row("Gemma3 ForCausalLM Gemma3Text", GROUPED, 3, EMBED, tolerance=FLOAT32, head_dim=8, sliding_window=4),
    row(
        "Olmo2 ForCausalLM",
        GROUPED,
        3,
        EMBED,
        tolerance=FLOAT32,
        unsilenced=("model.layers.0.self_attn.q_proj.out",),
    ),
    row("Phi3 ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32, pad_token_id=0),
    row("Phi ForCausalLM", TEXT, 3, EMBED),
    row("GPTNeoX ForCausalLM", TEXT, 3, ("gpt_neox.embed_in.out",)),
    row("GPTJ ForCausalLM", GPT2, 3, ("transformer.wte.out",), rotary_dim=4),
    row("Falcon ForCausalLM", FALCON, 2, ("transformer.word_embeddings.out",), multi_query=True),
    row(
        "Falcon ForCausalLM",
        FALCON,
        3,
        ("transformer.word_embeddings.out",),
        num_kv_heads=2,
        new_decoder_architecture=True,
    ),
    row(
        "Bloom ForCausalLM",
        {},
        2,
        ("transformer.word_embeddings.out",),
        vocab_size=61,
        hidden_size=32,
        n_layer=1,
        n_head=4,
    ),
    row(
        "OPT ForCausalLM",
        {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 24},
        4,
        ("model.decoder.embed_positions.out",),
        unsilenced=("model.decoder.embed_tokens.out",),
    ),
    row("Gemma ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32, head_dim=8),
    row("Cohere ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32),
    row("StableLm ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32),
    row("Starcoder2 ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32),
    row("GPTBigCode ForCausalLM", GPT2, 3, ("transformer.wte.out",)),
    row("CodeGen ForCausalLM", GPT2, 3, ("transformer.wte.out",), tolerance=FLOAT32, rotary_dim=4),
    row("Mixtral ForCausalLM", GROUPED, 3, EMBED, tolerance=FLOAT32, num_local_experts=4),
    row(
        "Mamba ForCausalLM",
        {},
        3,
        ("backbone.embeddings.out",),
        tolerance=FLOAT32,
        vocab_size=61,
        hidden_size=32,
        num_hidden_layers=1,
        state_size=4,
    ),
    row("Bert ForSequenceClassification", TEXT, 4, ("bert.embeddings.word_embeddings.out",)),
    row("Roberta ForMaskedLM", TEXT, 3, ("roberta.embeddings.word_embeddings.out",)),
    row(
        "DistilBert ForSequenceClassification",
        {},
        4,
        ("distilbert.embeddings.word_embeddings.out",),
        vocab_size=61,
        dim=32,
        n_layers=1,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=64,
    ),
    row(
        "Albert ForSequenceClassification",
        TEXT,
        5,
        ("albert.encoder.embedding_hidden_mapping_in.out",),
        unsilenced=("albert.embeddings.word_embeddings.out",),
        embedding_size=24,
    ),
    row(
        "Electra ForSequenceClassification",
        TEXT,
        5,
        ("electra.embeddings_project.out",),
        unsilenced=("electra.embeddings.word_embeddings.out",),
        embedding_size=24,
    ),
    row(
        "T5 ForConditionalGeneration",
        {},
        6,
        ("shared.out",),
        both_texts,
        FLOAT32,
        vocab_size=61,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=1,
        num_heads=4,
    ),
    row(
        "Bart ForConditionalGeneration",
        SEQUENCES,
        6,
        ("model.shared.out",),
        both_texts,
        max_position_embeddings=64,
    ),
    row(
        "Whisper ForConditionalGeneration",
        SEQUENCES,
        8,
        ("model.encoder.conv2.out", "model.decoder.embed_tokens.out"),
        speech,
        max_source_positions=10,
        max_target_positions=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    ),
    row(
        "Wav2Vec2 ForCTC",
        {},
        5,
        ("wav2vec2.feature_projection.projection.out",),
        wave,
        unsilenced=("wav2vec2.feature_extractor.conv_layers.1.conv.out",),
        apply_spec_augment=False,  # masks in train mode only, with a parameter that nothing else uses
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=64,
        conv_dim=[16, 16],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_feat_extract_layers=2,
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=4,
    ),
    row("CLIPText ModelWithProjection", TEXT, 2, (), projection_dim=16, eos_token_id=2),
    row("Dinov2 ForImageClassification", PATCHES, 3, ("dinov2.embeddings.cls_token.out",), pixels),
    row("Beit ForImageClassification", PATCHES, 3, ("beit.embeddings.cls_token.out",), pixels),
    row("ViT ForImageClassification", PATCHES, 3, ("vit.embeddings.cls_token.out",), pixels),
    row("DeiT ForImageClassification", PATCHES, 3, ("deit.embeddings.cls_token.out",), pixels),
    row(
        "Swin ForImageClassification",
        WINDOWS,
        6,
        ("swin.embeddings.patch_embeddings.projection.out", "swin.encoder.layers.0.downsample.reduction.out"),
        pixels,
        window_size=4,
    ),
    row(
        "Swinv2 ForImageClassification",
        WINDOWS,
        10,
        (
            "swinv2.embeddings.patch_embeddings.projection.out",
            "swinv2.encoder.layers.0.downsample.reduction.out",
        ),
        pixels,
        window_size=4,
    ),
    row(
        "ResNet ForImageClassification",
        STAGES,
        15,
        ("resnet.encoder.stages.1.layers.0.shortcut.convolution.out",),
        pixels,
        hidden_sizes=[32, 64, 96, 128],
        layer_type="bottleneck",
    ),
    row(
        "RegNet ForImageClassification",
        STAGES,
        15,
        ("regnet.encoder.stages.1.layers.0.shortcut.convolution.out",),
        pixels,
        hidden_sizes=[16, 32, 48, 64],
        groups_width=8,
    ),
    row(
        "MobileNetV1 ForImageClassification",
        {},
        14,
        (),
        pixels,
        image_size=32,
        depth_multiplier=0.25,
        classifier_dropout_prob=0.1,
        initializer_range=0.2,  # with the default of 0.02 the signal ends below the epsilon of the norms
    ),
    row(
        "MobileNetV2 ForImageClassification",
        {},
        25,
        tuple(f"mobilenet_v2.layer.{i}.reduce_1x1.convolution.out" for i in (0, 2, 5, 9, 12)),
        pixels,
        image_size=32,
        depth_multiplier=0.35,
        classifier_dropout_prob=0.1,
    ),
    row(
        "EfficientNet ForImageClassification",
        {},
        28,
        tuple(f"efficientnet.encoder.blocks.{i}.projection.project_conv.out" for i in (3, 5, 7)),
        pixels,
        image_size=32,
        width_coefficient=0.25,
        depth_coefficient=0.5,
        hidden_dim=320,
        initializer_range=0.2,  # with the default of 0.02 the signal ends below the epsilon of the norms
    ),
    row(
        "ConvNext ForImageClassification",
        {},
        9,
        (
            "convnext.embeddings.patch_embeddings.out",
            *(f"convnext.encoder.stages.{i}.downsampling_layer.1.out" for i in (1, 2, 3)),
        ),
        pixels,
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 2, 1],
        image_size=32,
    ),
    row(
        "ConvNextV2 ForImageClassification",
        {},
        9,
        (
            "convnextv2.embeddings.patch_embeddings.out",
            *(f"convnextv2.encoder.stages.{i}.downsampling_layer.1.out" for i in (1, 2, 3)),
        ),
        pixels,
        unsilenced=tuple(
            f"convnextv2.encoder.stages.{i}.layers.{j}.pwconv1.out"
            for i, j in ((0, 0), (1, 0), (2, 0), (2, 1), (3, 0))
        ),  # global response normalisation, which is the identity at first
        hidden_sizes=[16, 24, 32, 40],
        depths=[1, 1, 2, 1],
        image_size=32,
    ),
]
