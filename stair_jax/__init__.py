"""STAIR in JAX: safety alignment with introspective reasoning."""

import os

# transformers serves for tokenizers and files here; without PyTorch it says at every start that its
# models are not available.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
