"""Comparisons: the same experiment with several regularizers and seeds, as a table and a chart.

``record`` plans the runs and stores the plan, ``running`` trains them, and ``table`` computes the rows.
"""
