"""How fast scoring is: raw Parquet to scored Parquet beside FuxiCTR, and beside the sum of our own stages.

The log and the model's shape are FuxiCTR's benchmark: three ids, a bag of tags and a number; embeddings of 16, three
cross layers, a 400-400 tower. The artifact has int8 rows and, in turns, a float32 and a bfloat16 dense part. Each of
our stages is measured alone over the same rows with all cores: the same threads, and nothing else to do. FuxiCTR's
clock stands still while it imports, starts Ray, fits its features and builds its model.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.common import in_turns, machine, peer_python, spread, table
from benchmarks.prepare import data_config, write_for_peer, write_log
from data_pipelines.batch import Batch
from data_pipelines.encoder import Encoder
from data_pipelines.loader import collate
from models.plain_tables import PlainTables
from models.ranker import Ranker, RankerConfig
from models.table_layout import table_layouts
from models.weights import Precision, Weights
from serving.artifact import Artifact, ModelCard, write_artifact
from serving.batch_job import run_job
from serving.inputs import Input
from serving.scorer import MICROBATCH, Scorer

THREADS = torch.get_num_threads()
_PEER = Path(__file__).with_name("fuxictr_score.py")


def write_artifacts(log: Path, folder: Path) -> dict[str, Path]:
    """Artifacts of an untrained ranker of the peer's shape, by precision of the dense part."""
    config = data_config(log, history=False).model_copy(update={"keys": ["user_id", "item_id"]})
    encoder = Encoder.fit(config, pl.scan_parquet(log))
    shape = RankerConfig(dim=16, tower={"kind": "mlp", "hidden": (400, 400)})
    generator = torch.Generator().manual_seed(0)
    tables = {
        layout.name: torch.randn(layout.rows, layout.dim, generator=generator) * 0.1
        for layout in table_layouts(encoder.schema, shape)
    }
    ranker = Ranker(shape, encoder.schema, PlainTables(encoder.schema, shape, tables, {}, {}))
    card = ModelCard(name="bench", metrics={}, sparsity={}, training={}, versions={})
    paths: dict[str, Path] = {}
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        weights = Weights(
            shape, encoder.schema, tables, ranker.dense_state(), bits=dict.fromkeys(tables, 8), precision=precision
        )
        paths[precision] = folder / f"artifact-{precision}"
        write_artifact(weights, encoder, None, card, paths[precision])
    return paths


def run_ours(artifact: Path, rows: Path, folder: Path) -> float:
    """Seconds from opening the artifact to the renamed output."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began = time.perf_counter()
        run_job(Artifact.open(artifact), str(rows), Path(out) / "scores", threads=THREADS)
        return time.perf_counter() - began


def run_peer(folder: Path) -> float:
    """Seconds of FuxiCTR's transform and predict."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        command = [str(part) for part in (peer_python("fuxictr"), _PEER, folder, out)]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    stages = json.loads(done.stdout.splitlines()[-1])
    return float(stages["transform"] + stages["predict"])


def stages(artifact: Path, rows: Path, folder: Path) -> dict[str, Callable[[], float]]:
    """Each stage of a job alone: what it costs over all parts, with all threads."""
    scorer = Scorer(Artifact.open(artifact))
    config = scorer.artifact.encoder.config
    parts = Input.find(str(rows), config).parts(folder / "none", config)
    frames = [scorer.read(part.scan()).collect() for part in parts]
    encoded = [scorer.artifact.encoder.encode(frame.lazy()).collect() for frame in frames]
    batches = [list(_batches(scorer, frame)) for frame in encoded]
    scores = [scorer.score(frame) for frame in frames]

    def over_parts(work: Callable[[int], object]) -> float:
        def one(part: int) -> None:
            torch.set_num_threads(1)
            with torch.inference_mode():
                work(part)

        began = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(one, range(len(parts))))
        return time.perf_counter() - began

    def scan_and_encode(part: int) -> None:
        frame = scorer.read(parts[part].scan()).collect()
        list(_batches(scorer, scorer.artifact.encoder.encode(frame.lazy()).collect()))

    def tower(part: int) -> None:
        for batch in batches[part]:
            scorer.logits(batch)

    def lookup(part: int) -> None:
        for batch in batches[part]:
            scorer.ranker.tables(batch)

    def write(part: int) -> None:
        scores[part].write_parquet(folder / f"alone-{part}.parquet")

    named = {"scan + encode": scan_and_encode, "lookup": lookup, "lookup + tower": tower, "write": write}
    return {name: partial(over_parts, work) for name, work in named.items()}


def _batches(scorer: Scorer, encoded: pl.DataFrame) -> list[Batch]:
    schema = scorer.artifact.encoder.schema
    starts = range(0, len(encoded), MICROBATCH)
    pieces = [encoded.slice(start, MICROBATCH) for start in starts]
    return [collate(schema, piece, np.arange(len(piece))) for piece in pieces]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    print(machine(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = write_log(asked.rows, folder)
        write_for_peer(log, folder)
        rows = folder / "rows.parquet"
        pl.scan_parquet(log).drop("clicked").sink_parquet(rows, row_group_size=1 << 17)
        peer_rows = pl.read_parquet(log, columns=["user_id", "item_id", "surface", "tags", "price", "clicked"])
        peer_rows.with_columns(pl.col("tags").list.join("^")).write_parquet(folder / "test.parquet")
        artifacts = write_artifacts(log, folder)
        candidates = {
            f"ours, {precision}": partial(run_ours, path, rows, folder) for precision, path in artifacts.items()
        }
        candidates["FuxiCTR DCNv2"] = partial(run_peer, folder)
        candidates |= {f"{stage} alone": run for stage, run in stages(artifacts["fp32"], rows, folder).items()}
        seconds = in_turns(candidates, asked.rounds)
    print(table(("", "rows/s"), [(name, spread([asked.rows / s for s in took])) for name, took in seconds.items()]))
    median = {name: statistics.median(took) for name, took in seconds.items()}
    alone = sum(median[f"{stage} alone"] for stage in ("scan + encode", "lookup + tower", "write"))
    print(
        json.dumps(
            {
                "vs_fuxictr": round(median["FuxiCTR DCNv2"] / median["ours, bf16"], 2),
                "vs_fuxictr_fp32": round(median["FuxiCTR DCNv2"] / median["ours, fp32"], 2),
                "vs_stages": round(median["ours, fp32"] / alone, 3),
                "rows_per_s": round(asked.rows / median["ours, bf16"]),
                "rows_per_s_fp32": round(asked.rows / median["ours, fp32"]),
            }
        )
    )


if __name__ == "__main__":
    main()
