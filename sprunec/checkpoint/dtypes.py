"""What weights are stored in: floats, or the checkpoint is refused, a quantised one by that name; needs no torch."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from sprunec.errors import and_more, series

# safetensors' names of dtypes in torch's; others stay as they are.
NAMES = (
    {f"F{bits}": f"float{bits}" for bits in (16, 32, 64)}
    | {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
    | {f"U{bits}": f"uint{bits}" for bits in (8, 16, 32, 64)}
    | {"BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "BOOL": "bool", "C64": "complex64"}
)
FLOATS = ("float32", "float16", "bfloat16", "float64")
FIX_NUMBERS = "fix the file, or export it again from a good copy"
_FLOATS = series(FLOATS, "or")
SAVE_AS = f"save it as {_FLOATS}"
# A tensor by its end, whose way of quantising that is, and whether it stands beside the weight or instead of it.
_MARKS = (
    (r"qweight", "GPTQ, AWQ", False),
    (r"weight_packed", "compressed-tensors", False),
    (r"weight_quant", "BMInf", False),
    (r"weight\._data", "quanto", False),
    (r"W_q", "HQQ", False),
    (r"SCB|weight\.absmax|weight\.quant_(map|state.*)", "bitsandbytes", True),
    (r"(weight_)?(scales?|scale_inv)", "whole numbers or float8, and their scales", True),
)


def dtype_refusal(dtypes: Mapping[str, str], weights: Collection[str] = ()) -> tuple[str, str] | None:
    """Say of a checkpoint that its weights are no floats, and what to do; None where they are.

    Args:
        dtypes: of all its tensors, by torch's names.
        weights: those of them that the model takes; what is quantised is found without.
    """
    for name in dtypes:
        for pattern, kind, beside in _MARKS:  # what a module has because its weight is not there as floats
            found = re.fullmatch(rf"(.+)\.({pattern})", name)
            weight = f"{found[1]}.weight" if found is not None else ""
            if weight and (weight in dtypes) == beside and dtypes.get(weight) not in FLOATS:
                hint = f"give what it was made of, or dequantise it and save that as {_FLOATS}"
                return f"this checkpoint is quantised: it has {name} ({kind})", hint
    wrong = sorted(name for name in weights if name in dtypes and dtypes[name] not in FLOATS)
    return (f"{wrong[0]}{and_more(wrong)} is {dtypes[wrong[0]]}, and weights are floats", SAVE_AS) if wrong else None
