"""The matrix product that hand-written gradients use (loss.py, cpu_attention.py).

JAX traces the backward pass of a custom gradient later than its forward pass, so the precision that decoder.logits sets
for a whole forward pass does not reach it: such code states the precision of each product.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b, accumulated and returned in float32. float32 operands are not rounded to a lower precision anywhere."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)
