"""Numbers with their nouns, in text for people."""


def format_count(number: float, noun: str) -> str:
    """Returns a number with its noun in the singular or the plural.

    Examples:
        >>> format_count(1, "round"), format_count(1200, "round")
        ('1 round', '1200 rounds')
    """
    text = f"{number:g}" if isinstance(number, float) else str(number)
    return f"{text} {noun}" + ("" if number == 1 else "s")
