"""A real tokenizer that counts the rows it is given. A module of its own, so that `datasets` hashes it by name."""

import os
import signal

from transformers import PreTrainedTokenizerFast


rows = 0
fail_at = die_at = None


class CountingTokenizer(PreTrainedTokenizerFast):
    def __call__(self, text=None, *args, **kwargs):
        global rows
        rows += len(text) if isinstance(text, list) else 1
        if die_at is not None and rows >= die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if fail_at is not None and rows >= fail_at:
            raise RuntimeError("this row cannot be tokenised")
        return super().__call__(text, *args, **kwargs)
