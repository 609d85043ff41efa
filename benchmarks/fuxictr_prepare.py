"""FuxiCTR's own preparation of a split log; runs in FuxiCTR's environment, prints its seconds and peak memory.

Arguments: a folder with ``train.parquet``, ``valid.parquet`` and ``test.parquet`` (tags as text joined by ``^``), and a
folder to write to. Ray, which FuxiCTR transforms with, is started before the clock.
"""

import json
import logging
import sys
import time
from pathlib import Path

from fuxictr.preprocess import FeatureProcessor
from fuxictr.preprocess.build_dataset import build_dataset, init_ray

source, out = sys.argv[1:3]
logging.disable(logging.CRITICAL)
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
build_dataset(
    processor,
    train_data=f"{source}/train.parquet",
    valid_data=f"{source}/valid.parquet",
    test_data=f"{source}/test.parquet",
    data_format="parquet",
)
seconds = time.perf_counter() - begin
status = Path("/proc/self/status").read_text().splitlines()
peak = 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))
print(json.dumps({"seconds": seconds, "peak_rss_bytes": peak}))
