"""FuxiCTR from a raw Parquet file to predictions; runs in FuxiCTR's environment, prints its seconds by stage.

Arguments: a folder with ``train.parquet`` (to fit on) and ``test.parquet`` (to score; tags as text joined by ``^``),
and a folder to write to. Imports, Ray's start, fitting and building the model come before the clock.
"""

import json
import logging
import sys
import time

import numpy as np
from fuxictr.features import FeatureMap
from fuxictr.preprocess import FeatureProcessor
from fuxictr.preprocess.build_dataset import init_ray, transform
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr_models import DCNv2

source, out = sys.argv[1:3]
logging.disable(logging.CRITICAL)
init_ray()
processor = FeatureProcessor(
    feature_cols=[
        {"name": ["user_id", "item_id", "surface"], "active": True, "dtype": "str", "type": "categorical"},
        {
            "name": "tags",
            "active": True,
            "dtype": "str",
            "type": "sequence",
            "splitter": "^",
            "max_len": 4,
            "feature_encoder": "layers.MaskedAveragePooling()",
        },
        {"name": "price", "active": True, "dtype": "float", "type": "numeric", "normalizer": "StandardScaler"},
    ],
    label_col={"name": "clicked", "dtype": "float"},
    dataset_id="bench",
    data_root=out,
)
train = processor.preprocess(processor.read_data(f"{source}/train.parquet", data_format="parquet"))
processor.fit(train)
features = FeatureMap("bench", processor.data_dir)
features.load(f"{processor.data_dir}/feature_map.json", {"embedding_dim": 16})
model = DCNv2(features, 16, layers=3, hidden=[400, 400])
begin = time.perf_counter()
rows = processor.preprocess(processor.read_data(f"{source}/test.parquet", data_format="parquet"))
transform(processor, rows, "test")
transformed = time.perf_counter()
encoded = f"{processor.data_dir}/test.parquet"
batches = RankDataLoader(features, stage="test", test_data=encoded, batch_size=4096, data_format="parquet")
scores = model.predict(batches)
np.save(f"{out}/scores.npy", scores)
end = time.perf_counter()
print(json.dumps({"transform": transformed - begin, "predict": end - transformed, "rows": len(scores)}))
