"""Looks at the user's tables and writes a commented experiment file that runs on them: ``fednar init``."""
