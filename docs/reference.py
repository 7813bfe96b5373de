"""Writes the reference of all public names, from their docstrings, to build/docs: `make docs`."""

from pathlib import Path

import pdoc
import pdoc.render

import unsloth_accel


OUT = Path(__file__).parents[1] / "build" / "docs"


def main() -> None:
    for name in unsloth_accel.__all__:  # they are loaded when they are asked for, and pdoc asks for none
        setattr(unsloth_accel, name, getattr(unsloth_accel, name))
    pdoc.render.configure(docformat="google", show_source=False)
    pdoc.pdoc("unsloth_accel", output_directory=OUT)


if __name__ == "__main__":
    main()
