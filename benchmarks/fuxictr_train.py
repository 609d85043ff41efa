"""FuxiCTR's DCNv2 on batches that are ready made; runs in FuxiCTR's own environment, prints seconds of each step.

Arguments: a folder with arrays of encoded rows, the batch size, the number of steps, the number of warm-up steps.
"""

import json
import logging
import sys
import time
from itertools import cycle, islice
from pathlib import Path

import torch
from fuxictr_arrays import Batches, feature_map
from fuxictr_models import DCNv2

folder, batch_size, steps, warm_up = Path(sys.argv[1]), *map(int, sys.argv[2:5])
logging.disable(logging.CRITICAL)
torch.manual_seed(0)
model = DCNv2(feature_map(folder, 16), 16, layers=3, hidden=[400, 400])
model.train()
batches = Batches(folder / "train", size=batch_size)
full = (batch for batch in cycle(batches) if len(batch["label"]) == batch_size)
seconds = []
for batch in islice(full, warm_up + steps):
    begin = time.perf_counter()
    model.train_step(batch)
    seconds.append(time.perf_counter() - begin)
print(json.dumps(seconds[warm_up:]))
