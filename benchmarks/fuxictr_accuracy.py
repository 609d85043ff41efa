"""A model of FuxiCTR trained by FuxiCTR on encoded rows; runs in FuxiCTR's environment, prints what came of it.

Adam at 0.001, batches of 4096, the learning rate divided by 10 when the valid AUC does not rise, stopped after two
epochs without a rise: FuxiCTR's defaults. Its best weights and ``scores.npy``, the probabilities of the test split,
lie in the run's folder.

Arguments: ``train`` or ``rate`` (encoded rows per second that the trained model predicts); the folder with arrays;
JSON with the name of the ``model``, its ``settings`` and the ``seed``; the run's folder.
"""

import json
import logging
import sys
import time
from pathlib import Path

import fuxictr_models
import numpy as np
import torch
from fuxictr.pytorch.torch_utils import seed_everything
from fuxictr_arrays import Batches, feature_map

EPOCHS, RATED_ROWS = 100, 100_000

command, arrays, asked, run = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4])
logging.disable(logging.CRITICAL)
torch.set_num_threads(1)
seed_everything(asked["seed"])
kind, settings = getattr(fuxictr_models, asked["model"]), dict(asked["settings"])
dim = settings.pop("dim")
features = feature_map(arrays, dim, attend=kind.attends)
model = kind(features, dim, folder=run, **settings)
if command == "train":
    valid_aucs = []
    evaluate = model.evaluate

    def noted(batches, metrics=None):
        measured = evaluate(batches, metrics)
        valid_aucs.append(measured["AUC"])
        return measured

    model.evaluate = noted
    began = time.perf_counter()
    model.fit(Batches(arrays / "train", shuffle=True), epochs=EPOCHS, validation_data=Batches(arrays / "valid"))
    result = {
        "valid_aucs": valid_aucs,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "checkpoint_bytes": Path(model.checkpoint).stat().st_size,
        "seconds": time.perf_counter() - began,
    }
    np.save(run / "scores.npy", model.predict(Batches(arrays / "test")))
else:
    model.load_weights(model.checkpoint)
    model.predict(Batches(arrays / "train", rows=1000))
    batches = Batches(arrays / "train", rows=RATED_ROWS)
    began = time.perf_counter()
    model.predict(batches)
    result = {"rows_per_s": batches.rows / (time.perf_counter() - began)}
print(json.dumps(result))
