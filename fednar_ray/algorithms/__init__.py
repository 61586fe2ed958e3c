"""Algorithms: regularizers, client corrections, server optimizers, and the table that names their pairs."""
