"""Matrix products as the hand-written gradients need them.

Not in the design's list of modules: what `model.logits` sets for a whole forward pass does not reach the backward pass
of a custom gradient, which is traced later, so that such code names its precision itself.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """a @ b, accumulated and returned in float32. Products of float32 are not rounded on any platform."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.float32)
