"""FuxiCTR's own preparation of a split log; runs in FuxiCTR's environment, prints its seconds and peak memory.

FuxiCTR reads, fits and transforms; only Ray, which would deal its batches out to worker processes (one on two cores),
is replaced by a loop over the same batches. That spares FuxiCTR Ray's start and copies, and workers that crash.
Arguments: a folder with ``train.parquet``, ``valid.parquet`` and ``test.parquet`` (tags as text joined by ``^``), and a
folder to write to.
"""

import json
import logging
import sys
import time
from pathlib import Path

import polars as pl
from fuxictr.preprocess import FeatureProcessor

BATCH = 100_000

source, out = sys.argv[1:3]
logging.disable(logging.CRITICAL)
begin = time.perf_counter()
processor = FeatureProcessor(
    feature_cols=[
        {"name": ["user_id", "item_id", "surface"], "active": True, "dtype": "str", "type": "categorical"},
        {"name": "tags", "active": True, "dtype": "str", "type": "sequence", "splitter": "^", "max_len": 4},
        {"name": "price", "active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler"},
    ],
    label_col={"name": "clicked", "dtype": "float"},
    dataset_id="bench",
    data_root=out,
)
for split in ("train", "valid", "test"):
    rows = processor.preprocess(processor.read_data(f"{source}/{split}.parquet", data_format="parquet"))
    if split == "train":
        processor.fit(rows)
    batches = rows.collect().iter_slices(BATCH)
    encoded = [pl.DataFrame(processor.transform({c.name: c.to_numpy() for c in batch})) for batch in batches]
    pl.concat(encoded).write_parquet(f"{processor.data_dir}/{split}.parquet")
seconds = time.perf_counter() - begin
status = Path("/proc/self/status").read_text().splitlines()
peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(json.dumps({"seconds": seconds, "peak_rss_bytes": peak}))
