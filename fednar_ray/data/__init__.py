"""Names to arrays, labels to clients, and both to a federation."""
