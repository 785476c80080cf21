"""How axes flow through ops: a small rule for each kind unites what the op pairs up, and lays out what it gives.

Here are the ops that compute; `shape_ops` has those that only lay dims out anew.
"""

from __future__ import annotations

from torch import fx

from sprunec.rewrite.ops.axes import Axis, Dim, Layout, fresh, meet, pin, size, unite
from sprunec.rewrite.ops.flow import Flow, Rule, argument, pin_all, tensor_inputs
from sprunec.rewrite.ops.shape_ops import concatenate, index_select, item, matrix_transpose, permute, transpose, view


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


def matmul(flow: Flow, node: fx.Node) -> Layout:
    left, right = flow.layout(node.args[0]), flow.layout(node.args[1])
    if min(len(left), len(right)) < 2 or len(left) != len(right):
        pin_all([*left, *right], "it goes through a matmul of unlike ranks")
        return fresh(flow.shape(node), "it comes out of a matmul of unlike ranks")
    side_by_side = [meet(ours, theirs) for ours, theirs in zip(left[:-2], right[:-2], strict=True)]
    unite(left[-1], right[-2])
    flow.sums_over(node, node.args[0], len(left) - 1)
    mixed = softmax_origin(flow, node)
    if mixed is not None:
        flow.cores.append((node.name, side_by_side, scored_dim(flow, mixed), right[-1]))
    return [*side_by_side, left[-2], right[-1]]


def attention(flow: Flow, node: fx.Node) -> Layout:
    """Lay out softmax(q kᵀ + mask) v: leading dims run side by side, E is summed over, the rest is mixed.

    Grouped queries are fewer keys than queries in one of those dims: they are paired, but not one to one.
    """
    query, key, value = (flow.layout(argument(node, i, name)) for i, name in enumerate(("query", "key", "value")))
    if not len(query) == len(key) == len(value):
        pin_all([*query, *key, *value], "it goes through an attention of unlike ranks")
        return fresh(flow.shape(node), "it comes out of an attention of unlike ranks")
    rows = zip(query[:-2], key[:-2], value[:-2], strict=True)
    side_by_side = [meet(meet(ours, keys), values) for ours, keys, values in rows]
    unite(query[-1], key[-1])
    unite(key[-2], value[-2])
    pin(key[-2], "attention takes a softmax over it")
    mask = argument(node, 3, "attn_mask")
    if mask is not None:
        align_mask(flow.layout(mask), [*side_by_side, query[-2], key[-2]])
    flow.sums_over(node, argument(node, 0, "query"), len(query) - 1)
    flow.cores.append((node.name, side_by_side, query[-1], value[-1]))
    return [*side_by_side, query[-2], value[-1]]


def align_mask(mask: Layout, scores: Layout) -> None:
    """Meet a mask's dims, from the right, with the scores'; one query's or one key's 1 is no axis of the mask's."""
    for back, (ours, theirs) in enumerate(zip(reversed(scores), reversed(mask), strict=False), start=1):
        if back > 2 or size(theirs) != 1:
            meet(ours, theirs)


def softmax_origin(flow: Flow, node: fx.Node) -> fx.Node | None:
    """Find the softmax whose weights this matmul mixes with."""
    value = node.args[0]
    while isinstance(value, fx.Node) and value.op != "placeholder":
        if flow.op(value) == "softmax":
            return value
        value = next(tensor_inputs(flow, value), None)
        if value is not None and flow.op(value) in ("matmul", "bmm", "linear"):
            return None
    return None


def scored_dim(flow: Flow, softmax_node: fx.Node) -> Dim:
    """Find the dim that the scores under a softmax were summed over."""
    pending = list(tensor_inputs(flow, softmax_node))
    while pending:
        value = pending.pop()
        if flow.op(value) in ("matmul", "bmm"):
            return flow.layout(value.args[0])[-1]
        if value.op != "placeholder" and value.op != "get_attr":
            pending.extend(tensor_inputs(flow, value))
    return []


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
    for dim in gone:
        pin(layout[dim], f"{flow.op(node)} counts it")
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
    "linear": linear,
    "scaled_dot_product_attention": attention,
    "softmax": softmax,
    "permute": permute,
    "mT": matrix_transpose,
    "embedding": embedding,
    "index_select": index_select,
    "getitem": item,
}
