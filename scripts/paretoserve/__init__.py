"""paretoserve: plan LLM serving deployments from measured operator latencies."""

__version__ = "0.1.0"
