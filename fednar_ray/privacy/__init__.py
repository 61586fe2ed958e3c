"""Differential privacy: bounds of updates, noise, secrets, and the accounting of ε."""
