"""Recurrent layers: the hidden units are one axis, the gates are segments of it."""

from typing import Any

from msfusion.capture.labels import ONE, Label, concat, pin, unify
from msfusion.capture.rearrange import reshape

from .registry import Call, Labels, Result, rule

_GATES = {"lstm": 4, "gru": 3, "lstm_cell": 4, "gru_cell": 3}


def _gated(call: Call, x: Label, weight_ih: Labels, weight_hh: Labels, biases: list[Labels]) -> Label:
    """Equate inputs, hidden units and gates of one layer and direction; returns the hidden units."""
    hidden = weight_hh[1]
    unify(weight_ih[1], x, call.where)
    gates = _GATES.get(call.op, 1)
    counter, units = (
        reshape([weight_ih[0]], [gates, hidden.size], call.where)
        if gates > 1
        else (
            ONE,
            weight_ih[0],
        )
    )
    pin(counter, "gates")
    unify(units, hidden, call.where)
    for other in (weight_hh, *biases):
        unify(other[0], weight_ih[0], call.where)
    call.sums(weight_ih, weight_ih[1])
    call.sums(weight_hh, weight_hh[1])
    return hidden


def _states(call: Call, states: Any) -> list[Labels]:
    return list(states) if isinstance(states, list | tuple) and not isinstance(states, Labels) else [states]


@rule("lstm gru rnn_tanh rnn_relu")
def recurrent(call: Call) -> Result:
    x, parameters, states = call["input"], list(call["params"]), _states(call, call["hx"])
    directions = 1 + call["bidirectional"]
    number = len(parameters) // (call["num_layers"] * directions)
    if number not in (2, 4):  # a projected LSTM
        return None
    for state in states:
        pin(state[0], "layers")
    features = x[-1]
    for layer in range(call["num_layers"]):
        units = []
        for direction in range(directions):
            first = (layer * directions + direction) * number
            weight_ih, weight_hh, *biases = parameters[first : first + number]
            units.append(_gated(call, features, weight_ih, weight_hh, biases))
            for state in states:  # the states of all layers lie in one tensor
                unify(state[-1], units[-1], call.where)
        features = concat(*units)
    return [Labels([*x[:-1], features]), *map(Labels, states)]


@rule("lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def cell(call: Call) -> Result:
    x, states = call["input"], _states(call, call["hx"])
    biases = [b for b in (call["b_ih"], call["b_hh"]) if b is not None]
    hidden = _gated(call, x[-1], call["w_ih"], call["w_hh"], biases)
    for state in states:
        unify(state[-1], hidden, call.where)
    return [Labels([*x[:-1], hidden])] * len(call.shapes)
