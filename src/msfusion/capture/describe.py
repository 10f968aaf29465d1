"""Attributes of PyTorch's own layers that merely repeat the shapes of their tensors."""

from typing import Any

from torch import nn

_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
_CELLS = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)


def describe(model: nn.Module) -> None:
    """Make these attributes agree with the tensors, in every module of the model."""
    for module in model.modules():
        for name, value in described_sizes(module).items():
            setattr(module, name, value)


def described_sizes(module: nn.Module) -> dict[str, Any]:
    """Attribute -> its value by the shapes of the tensors of the module."""
    if isinstance(module, nn.MultiheadAttention):
        return _attention(module)
    if isinstance(module, _RECURRENT):
        return _recurrent(module.weight_ih_l0, module.weight_hh_l0)
    if isinstance(module, _CELLS):
        return _recurrent(module.weight_ih, module.weight_hh)
    weight = module._parameters.get("weight")
    return {} if weight is None else _by_weight(module, tuple(weight.shape))


def _recurrent(weight_ih: Any, weight_hh: Any) -> dict[str, Any]:
    """Of its weights, which may be computed from parameters under other names."""
    return {"hidden_size": weight_hh.shape[1], "input_size": weight_ih.shape[1]}


def _by_weight(module: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    match module:
        case nn.Linear():
            return {"out_features": shape[0], "in_features": shape[1]}
        case nn.modules.conv._ConvNd(transposed=True):
            return {"in_channels": shape[0], "out_channels": shape[1] * module.groups}
        case nn.modules.conv._ConvNd():
            return {"out_channels": shape[0], "in_channels": shape[1] * module.groups}
        case nn.modules.batchnorm._NormBase():
            return {"num_features": shape[0]}
        case nn.GroupNorm():
            return {"num_channels": shape[0]}
        case nn.LayerNorm() | nn.RMSNorm():
            return {"normalized_shape": shape}
        case nn.Embedding():
            return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
        case _ if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):  # GPT-2 in transformers
            return {"nf": shape[1], "nx": shape[0]}
        case _:
            return {}


def _attention(module: nn.MultiheadAttention) -> dict[str, Any]:
    """PyTorch insists that heads times their size is the embedding: the two have to shrink together."""
    embed, inner = module.out_proj.weight.shape
    out: dict[str, Any] = {"embed_dim": embed, "num_heads": max(1, inner // module.head_dim)}
    if module._qkv_same_embed_dim:
        out |= {"kdim": embed, "vdim": embed}
    return out
