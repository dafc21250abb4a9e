"""Times Hugging Face tokenizers on one thread: the lines of --file in batches, as datasets are tokenised."""

import os

os.environ["RAYON_NUM_THREADS"], os.environ["TOKENIZERS_PARALLELISM"] = "1", "false"

import time
from pathlib import Path

from tokenizers import Tokenizer

from peer import arguments, report, since_start

BATCH = 4096


def main():
    options = arguments(__doc__, file=(Path, None))
    tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
    lines = options.file.read_text().splitlines(keepends=True)
    tokenizer.encode_batch_fast(lines[:BATCH], add_special_tokens=False)
    ready, start = since_start(), time.perf_counter()
    for at in range(0, len(lines), BATCH):
        tokenizer.encode_batch_fast(lines[at:at + BATCH], add_special_tokens=False)
    report(ready, [options.file.stat().st_size], [time.perf_counter() - start])


if __name__ == "__main__":
    main()
