"""Generates Unsloth's trainers into the rank's folder: `compiled_cache.py OUT FOLDER [FOLDER ...]`.

Each rank writes OUT-<rank>.json. With one folder all ranks share it. No GPU: Unsloth loads the modules of its GPU path
with UNSLOTH_ALLOW_CPU, and generates the trainers that a GPU would get.
"""

import ctypes
import hashlib
import importlib
import json
import os
import struct
import sys
import time
from pathlib import Path


OUT, *FOLDERS = sys.argv[1:]
RANK = int(os.environ.get("RANK", "0"))
CAP_DAC_OVERRIDE, CAPABILITIES_V3 = 1, 0x20080522


def obey_permissions():
    """Root may write into a read-only folder; without this capability it may not."""
    libc = ctypes.CDLL(None, use_errno=True)
    header, sets = struct.pack("Ii", CAPABILITIES_V3, 0), ctypes.create_string_buffer(24)
    assert libc.capget(header, sets) == 0
    words = list(struct.unpack("6I", sets.raw))
    words[0] &= ~(1 << CAP_DAC_OVERRIDE)
    assert libc.capset(header, struct.pack("6I", *words)) == 0


def generate():
    """What `import unsloth` does where there is a GPU."""
    os.environ["UNSLOTH_ALLOW_CPU"] = "1"
    importlib.import_module("unsloth")
    os.environ["UNSLOTH_ALLOW_CPU"] = "0"
    torch = importlib.import_module("torch")
    torch.cuda.get_device_name = lambda *_, **__: "none"
    importlib.import_module("unsloth.models.rl").PatchFastRL(None, None)


def main():
    os.environ["UNSLOTH_COMPILE_LOCATION"] = FOLDERS[RANK % len(FOLDERS)]
    if os.geteuid() == 0:
        obey_permissions()
    began = time.monotonic()
    generate()
    trl = importlib.import_module("trl")
    trainers = {name: sys.modules[name] for name in sys.modules if name.startswith("Unsloth")}
    files = {name: Path(module.__file__) for name, module in trainers.items()}
    result = {
        "trainer": trl.SFTTrainer.__name__,
        "from": str(files["UnslothSFTTrainer"].parent),
        "sources": {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()},
        "seconds": time.monotonic() - began,
    }
    Path(f"{OUT}-{RANK}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main()
