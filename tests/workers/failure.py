"""How a call fails, for the workers that collect it."""


def failure(function, *arguments, **options):
    """The error's type and text, or None where there is none."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return None
