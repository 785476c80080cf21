"""How axes flow through ops: a small rule for each kind unites what the op pairs up, and lays out what it gives.

Here are the ops that compute; `attention_ops` has those that attention is made of, and `shape_ops` those that only lay
dims out anew.
"""

from __future__ import annotations

from torch import fx

from sprunec.rewrite.ops.attention_ops import attention, baddbmm, matmul
from sprunec.rewrite.ops.axes import Axis, Dim, Layout, pin, size, unite
from sprunec.rewrite.ops.flow import Flow, Rule, argument, tensor_inputs
from sprunec.rewrite.ops.shape_ops import (
    concatenate,
    expand,
    index_select,
    item,
    matrix_transpose,
    narrow,
    permute,
    repeat_interleave,
    stack,
    transpose,
    view,
)


def broadcast(flow: Flow, node: fx.Node) -> Layout:
    """Unite entry by entry, dims aligned from the right; a dim of 1 meets anything."""
    shape = flow.shape(node)
    result: list[Dim | None] = [None] * len(shape)
    for value in tensor_inputs(flow, node):
        for back, dim in enumerate(reversed(flow.layout(value)[-len(shape) :] if shape else []), start=1):
            if size(dim) != shape[-back]:
                continue
            known = result[-back]
            if known is None:
                result[-back] = dim
            else:
                unite(known, dim)
    return [dim if dim is not None else [Axis(length)] for dim, length in zip(result, shape, strict=True)]


def linear(flow: Flow, node: fx.Node) -> Layout:
    x, weight, bias = node.args[0], argument(node, 1, "weight"), argument(node, 2, "bias")
    layout, rows = flow.layout(x), flow.layout(weight)
    unite(layout[-1], rows[1])
    if bias is not None:
        unite(flow.layout(bias)[0], rows[0])
    flow.sums_over(node, x, len(layout) - 1)
    return [*layout[:-1], rows[0]]


def addmm(flow: Flow, node: fx.Node) -> Layout:
    """Lay out bias + x @ weight, of a weight (in, out)."""
    bias, x, weight = (argument(node, i, name) for i, name in enumerate(("input", "mat1", "mat2")))
    (rows, summed), (columns, result) = flow.layout(x), flow.layout(weight)
    unite(summed, columns)
    unite(flow.layout(bias)[-1], result)
    flow.sums_over(node, x, 1)
    return [rows, result]


def softmax(flow: Flow, node: fx.Node) -> Layout:
    layout = flow.layout(node.args[0])
    pin(layout[argument(node, 1, "dim", -1)], "a softmax is taken over it")
    return layout


def norm(flow: Flow, node: fx.Node) -> Layout:
    """Pin the last dims, which layer_norm and rms_norm count, and unite them with scale and shift."""
    layout = flow.layout(node.args[0])
    reach = len(argument(node, 1, "normalized_shape"))
    for dim in layout[-reach:]:
        pin(dim, "a norm counts it")
    for value in list(tensor_inputs(flow, node))[1:]:
        for ours, theirs in zip(layout[-reach:], flow.layout(value), strict=True):
            unite(ours, theirs)
    return layout


def reduction(flow: Flow, node: fx.Node) -> Layout:
    layout = flow.layout(node.args[0])
    chosen = argument(node, 1, "dim")
    dims = range(len(layout)) if chosen is None else (chosen if isinstance(chosen, tuple | list) else [chosen])
    gone = {dim % len(layout) for dim in dims}
    # A mean of squares is what norms are made of that are no op of their own.
    squares = flow.op(node) == "mean" and flow.op(next(tensor_inputs(flow, node))) in ("pow", "square")
    for dim in gone:
        pin(layout[dim], "a norm counts it" if squares else f"{flow.op(node)} counts it")
    if len(flow.shape(node)) == len(layout):
        return [[Axis(1)] if place in gone else dim for place, dim in enumerate(layout)]
    return [dim for place, dim in enumerate(layout) if place not in gone]


def embedding(flow: Flow, node: fx.Node) -> Layout:
    return [*flow.layout(node.args[0]), flow.layout(argument(node, 1, "weight"))[1]]


ARITHMETIC = ("add", "sub", "mul", "truediv", "div", "true_divide", "pow", "neg", "abs", "sqrt", "rsqrt", "square")
COMPARISONS = ("eq", "ne", "gt", "lt", "ge", "le", "and", "or", "where", "maximum", "minimum", "clamp", "masked_fill")
FUNCTIONS = ("tanh", "sigmoid", "softplus", "exp", "log", "cos", "sin", "erf")
ACTIVATIONS = ("gelu", "relu", "relu6", "leaky_relu", "elu", "silu", "mish", "hardswish", "dropout", "identity")
CASTS = ("contiguous", "clone", "float", "half", "bfloat16", "type_as", "to", "type")
RULES: dict[str, Rule] = {
    **dict.fromkeys((*ARITHMETIC, *COMPARISONS, *FUNCTIONS, *ACTIVATIONS, *CASTS), broadcast),
    **dict.fromkeys(("view", "reshape", "flatten", "unflatten", "unsqueeze", "squeeze"), view),
    **dict.fromkeys(("matmul", "bmm"), matmul),
    **dict.fromkeys(("mean", "sum", "var", "std", "amax", "amin"), reduction),
    **dict.fromkeys(("layer_norm", "rms_norm"), norm),
    **dict.fromkeys(("cat", "concat"), concatenate),
    **dict.fromkeys(("swapaxes", "swapdims", "transpose"), transpose),
    **dict.fromkeys(("expand", "expand_as", "broadcast_to"), expand),
    "linear": linear,
    "addmm": addmm,
    "baddbmm": baddbmm,
    "repeat_interleave": repeat_interleave,
    "stack": stack,
    "narrow": narrow,
    "scaled_dot_product_attention": attention,
    "softmax": softmax,
    "permute": permute,
    **dict.fromkeys(("T", "t", "mT"), matrix_transpose),
    "embedding": embedding,
    "index_select": index_select,
    "getitem": item,
}
