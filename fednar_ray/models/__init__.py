"""Builds models: built-in ones that are sized to the data, torchvision's, and those of a user's own function."""

from fednar_ray.models.building import build_model

__all__ = ["build_model"]
