"""The same experiment under several regularizers and seeds: what FedNAR is worth, as a table and a chart."""
