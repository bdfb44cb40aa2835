"""STAIR in JAX: safety alignment with introspective reasoning."""
