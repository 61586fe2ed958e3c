"""The ``fednar`` command."""
