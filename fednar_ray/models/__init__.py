"""Models by name, sized to the data; by torchvision's name; or from a function that a dotted path names."""

from fednar_ray.models.building import build_model

__all__ = ["build_model"]
