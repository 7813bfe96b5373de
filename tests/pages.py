"""Reading the documents."""

import re


def code_blocks(page: str, *languages: str) -> list[str]:
    """What is in the fenced blocks of a page, of these languages; `""` is a block without one.

    All blocks are read, whatever their language, since the fence that closes one looks like one that opens another.
    """
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    return [block for language, block in blocks if language in languages]
