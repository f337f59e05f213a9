"""How well predictions meet measured deployments: runs as data, prediction, fit and scores."""
