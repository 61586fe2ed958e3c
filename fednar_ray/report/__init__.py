"""Plots of runs, comparisons and searches, and the page of a search."""
