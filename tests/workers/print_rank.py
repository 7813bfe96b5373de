"""Prints one JSON line: what this rank sees of its group."""

import json

from accelerate import Accelerator
from accelerate.utils import gather_object


accelerator = Accelerator()
print(
    json.dumps(
        {
            "rank": accelerator.process_index,
            "ranks": gather_object([accelerator.process_index]),
            "device": accelerator.device.type,
            "backend": accelerator.state.backend,
            "precision": accelerator.mixed_precision,
        }
    )
)
accelerator.end_training()
