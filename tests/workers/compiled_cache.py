"""Generates Unsloth's trainers into the rank's folder: `compiled_cache.py OUT FOLDER [FOLDER ...]`.

Each rank writes OUT-<rank>.json. With one folder all ranks share it. No GPU.
"""

import ctypes
import hashlib
import os
import struct
import sys
from pathlib import Path

import generated_trainers
from start import RANK, write_result


OUT, *FOLDERS = sys.argv[1:]
CAP_DAC_OVERRIDE, CAPABILITIES_V3 = 1, 0x20080522


def obey_permissions():
    """Root may write into a read-only folder; without this capability it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = struct.pack("Ii", CAPABILITIES_V3, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, sets) == 0
    words = list(struct.unpack("6I", sets.raw))
    words[0] &= ~(1 << CAP_DAC_OVERRIDE)
    assert libc.capset(header, struct.pack("6I", *words)) == 0


def main():
    os.environ["UNSLOTH_COMPILE_LOCATION"] = FOLDERS[RANK % len(FOLDERS)]
    if os.geteuid() == 0:
        obey_permissions()
    generated_trainers.load()
    import trl

    trainers = {name: sys.modules[name] for name in sys.modules if name.startswith("Unsloth")}
    files = {name: Path(module.__file__) for name, module in trainers.items()}
    seen = {
        "trainer": trl.SFTTrainer.__name__,
        "from": str(files["UnslothSFTTrainer"].parent),
        "sources": {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
    }
    write_result(OUT, seen)


if __name__ == "__main__":
    main()
