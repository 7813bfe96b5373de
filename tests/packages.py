"""Installations that are wrong, made of real files: they come first on the path."""

from pathlib import Path


def install(folder: Path, requires: tuple[str, ...] = (), **versions: str) -> None:
    """Empty distributions of these versions."""
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = [f"Requires-Dist: {requirement}\n" for requirement in requires]
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{''.join(lines)}")


def plant(folder: Path, **sources: str) -> Path:
    """Packages that are this source. Returns the folder."""
    for name, source in sources.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(source)
    return folder
