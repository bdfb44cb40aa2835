"""The benchmarks, a file each; see `evals.benchmark`."""
