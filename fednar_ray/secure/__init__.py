"""Secure aggregation: clients mask their updates so that the driver can compute only the sum. No Ray here."""
