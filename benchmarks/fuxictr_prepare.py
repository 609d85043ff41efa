"""FuxiCTR's own preparation of a split log; runs in FuxiCTR's environment, prints its seconds and peak memory.

``ray``: as FuxiCTR ships it, its batches dealt out by Ray Data to worker processes (one on two cores); Ray is started
before the clock. ``loop``: a loop over the same batches in this process, which spares FuxiCTR Ray's copies.
Arguments: ``ray`` or ``loop``; a folder with ``train.parquet``, ``valid.parquet`` and ``test.parquet`` (tags as text
joined by ``^``); a folder to write to.
"""

import json
import logging
import sys
import time
from pathlib import Path

import polars as pl
from fuxictr.preprocess import FeatureProcessor
from fuxictr.preprocess.build_dataset import build_dataset, init_ray

BATCH = 100_000

engine, source, out = sys.argv[1:4]
logging.disable(logging.CRITICAL)
if engine == "ray":
    init_ray()
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
files = {split: f"{source}/{split}.parquet" for split in ("train", "valid", "test")}
if engine == "ray":
    build_dataset(
        processor,
        train_data=files["train"],
        valid_data=files["valid"],
        test_data=files["test"],
        data_format="parquet",
    )
else:
    for split, file in files.items():
        rows = processor.preprocess(processor.read_data(file, data_format="parquet"))
        if split == "train":
            processor.fit(rows)
        batches = rows.collect().iter_slices(BATCH)
        encoded = [pl.DataFrame(processor.transform({c.name: c.to_numpy() for c in batch})) for batch in batches]
        pl.concat(encoded).write_parquet(f"{processor.data_dir}/{split}.parquet")
seconds = time.perf_counter() - begin
status = Path("/proc/self/status").read_text().splitlines()
peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(json.dumps({"seconds": seconds, "peak_rss_bytes": peak}))
