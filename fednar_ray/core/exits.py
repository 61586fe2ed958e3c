"""Turns exceptions by which a user's code would end the process into ordinary errors."""

from collections.abc import Iterator
from contextlib import contextmanager

from fednar_ray.core.errors import UserCodeExited


@contextmanager
def exits_as_errors() -> Iterator[None]:
    """Turns ``sys.exit`` and other exceptions that are not an ``Exception`` into UserCodeExited.

    KeyboardInterrupt passes, since it is the user's Ctrl-C, and GeneratorExit, with which Python ends this generator if
    a Ctrl-C came between its lines. So does the exit that Ray raises inside an actor to end it, which has an attribute
    that Ray sets.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if hasattr(error, "ray_terminate_msg"):
            raise
        raise UserCodeExited(f"the code raised {type(error).__name__}({error})") from error
