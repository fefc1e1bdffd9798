"""stdist: out-of-core, distributed spatial transcriptomics."""

__version__ = "0.1.0"
