"""Experiments: from YAML, or the flags of default mode, to resolved questions and their work."""
