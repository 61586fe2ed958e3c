"""The algorithms as values: regularizers, local rules, server rules, and the table that names their pairs."""
