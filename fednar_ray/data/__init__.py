"""Loads data sets, divides their examples among clients, and plans the batches that clients train on."""
