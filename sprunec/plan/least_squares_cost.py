"""What least squares over a layer's input features take, before anything runs; needs no torch.

Letters: F features that go into a projection, O its outputs, K of the features kept. Bytes are those at the peak, with
the moment (F, F) and without what holds the model; operations are additions and multiplications in matrix products.
"""

from __future__ import annotations

FLOAT, DOUBLE = 4, 8


def moment_operations(features: int, tokens: int) -> int:
    """Count what second moments of so many tokens take: of the products, half are mirrored."""
    return tokens * features**2


def removal_bytes(features: int, outputs: int) -> int:
    """Count what `reconstruction` holds of a projection: the moment, its inverse in float32, the weight's rows."""
    return FLOAT * (2 * features**2 + features * outputs)


def removal_operations(features: int, outputs: int) -> int:
    """Count the inverse, F³, what removals change of it, F³ / 3, and of the weight, F² O."""
    return 4 * features**3 // 3 + features**2 * outputs


def refit_bytes(features: int, kept: int, outputs: int) -> int:
    """Count the moment, and in float64 the factor (K, K), what is solved for (K, O), and the weight (K, O)."""
    return FLOAT * features**2 + DOUBLE * (kept**2 + outputs * (kept + max(kept, features - kept)))


def refit_operations(features: int, kept: int, outputs: int) -> int:
    """Count the factor, K³ / 3, two solutions with it, 2 K² O, and the product with what goes, 2 K (F - K) O."""
    return kept**3 // 3 + 2 * kept * outputs * (kept + features - kept)
