"""How fast scoring is: raw Parquet to scored Parquet beside FuxiCTR, our own stages, ONNX Runtime, and pairs.

The log and the model's shape are FuxiCTR's benchmark: three ids, a bag of tags and a number; embeddings of 16, three
cross layers, a 400-400 tower. The artifact has int8 rows and, in turns, a dense part in float32, in bfloat16, and in
int8 (`sparsity.quantization.activations`), all with the same weights; scores are compared with those in float32. The
figures without a precision are those of int8. Each of our stages is measured alone over the same rows with all cores:
the same threads, and nothing else to do. FuxiCTR's time excludes imports, the start of Ray, fitting its features
and building its model; it computes in float32. ONNX Runtime computes the same cross layers, tower and head, in float32,
from rows that are looked up and joined already.

Pairs are 1,000 candidates for each of 1,000 users, compared with flat rows of such pairs, for some of the users. The
model reads the last 200 clicks of a user (attended by the candidate, or pooled by their mean), or the user's id alone.
The tower computes every pair, so pairs are never faster than the tower: if a flat row costs little more than the tower,
as with ids alone, pairs gain little.

Peak memory is that of a process of its own, over the log once and over the same log as 20 files.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import torch

from benchmarks.common import in_turns, machine, peak_rss_bytes, peer_says, spread, table
from benchmarks.prepare import data_config, write_for_peer, write_log
from data_pipelines.batch import Batch
from data_pipelines.dataset.dataset import prepare
from data_pipelines.features.encoder import Encoder
from data_pipelines.features.plan import Plan
from data_pipelines.synthetic import DemoConfig, generate
from models.codecs.compact import Precision
from models.codecs.quantization import Bits
from models.int8 import observe
from models.ranker import Ranker, RankerConfig
from models.tables.plain import PlainTables
from models.tables.plan import lookup_plan
from models.weights import Weights
from serving.artifact.artifact import Artifact, write_artifact
from serving.artifact.card import ModelCard
from serving.batch.batch_job import run_job
from serving.batch.inputs import Input
from serving.batch.options import JobOptions
from serving.batch.scorer import Scorer

THREADS = torch.get_num_threads()
COPIES = 20
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
FASTEST: Precision = "int8"
_USERS, _FLAT_USERS, _CANDIDATES = 1000, 20, 1000
_SAMPLE = 20_000
_HISTORIES = {"attention": {"recent": "attention"}, "mean": {"recent": "mean"}, "ids": {}}


def write_artifact_of(
    encoder: Encoder, state: Path | None, sample: pl.LazyFrame, out: Path, precision: Precision, **shape: object
) -> None:
    """An artifact of an untrained ranker of the peer's shape, with int8 rows; int8 grids fit the rows of ``sample``."""
    torch.manual_seed(0)
    config = RankerConfig.model_validate({"dim": 16, "tower": {"kind": "mlp", "hidden": (400, 400)}, **shape})
    tables = {
        layout.name: torch.randn(layout.rows, layout.dim) * 0.1 for layout in lookup_plan(encoder.schema, config).tables
    }
    ranker = Ranker(config, encoder.schema, PlainTables(encoder.schema, config, tables, {}, {}))
    bits: dict[str, Bits] = dict.fromkeys(tables, 8)
    weights = Weights(config, encoder.schema, tables, ranker.dense_state(), bits=bits, precision=precision)
    card = ModelCard(name="bench", versions={})
    write_artifact(weights, encoder, state, card, out)
    if precision == "int8":
        scorer = Scorer(Artifact.open(out))
        weights.grids = observe(weights.to_ranker(), scorer.encode(scorer.read(sample).collect()))
        write_artifact(weights, encoder, state, card, out, replace=True)


def write_artifacts(log: Path, folder: Path) -> dict[str, Path]:
    """Artifacts over the log, by precision of the dense part."""
    config = data_config(log, history=False).model_copy(update={"keys": ["user_id", "item_id"]})
    encoder = Encoder.fit(Plan.of(config), pl.scan_parquet(log))
    paths = {precision: folder / f"artifact-{precision}" for precision in PRECISIONS}
    for precision, path in paths.items():
        write_artifact_of(encoder, None, pl.scan_parquet(log).head(_SAMPLE), path, precision)
    return {str(precision): path for precision, path in paths.items()}


def run_ours(artifact: Path, rows: Path, folder: Path) -> float:
    """Seconds from opening the artifact to the renamed output."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began = time.perf_counter()
        run_job(Artifact.open(artifact), str(rows), Path(out) / "scores", threads=THREADS)
        return time.perf_counter() - began


def run_peer(folder: Path) -> float:
    """Seconds of FuxiCTR's transform and predict."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        stages = peer_says("fuxictr", "fuxictr_score.py", folder, out)
    return float(stages["transform"] + stages["predict"])


def stages(artifact: Path, rows: Path, folder: Path) -> dict[str, Callable[[], float]]:
    """Each stage of a job alone: what it costs over all parts, with all threads."""
    scorer = Scorer(Artifact.open(artifact))
    plan = scorer.artifact.encoder.plan
    parts = Input.find(str(rows), plan).parts(folder / "none", plan)
    frames = [scorer.read(part.scan()).collect() for part in parts]
    batches = [list(scorer.encode(frame)) for frame in frames]
    scores = [scorer.score(frame) for frame in frames]

    def scan_and_encode(part: int) -> None:
        for _ in scorer.encode(scorer.read(parts[part].scan()).collect()):
            pass

    def lookup_and_tower(part: int) -> None:
        for batch in batches[part]:
            scorer.logits(batch)

    def lookup(part: int) -> None:
        for batch in batches[part]:
            scorer.ranker.tables(batch)

    def write(part: int) -> None:
        scores[part].write_parquet(folder / f"alone-{part}.parquet")

    named = {"scan + encode": scan_and_encode, "lookup": lookup, "lookup + tower": lookup_and_tower, "write": write}
    return {name: partial(over, len(parts), work) for name, work in named.items()}


def over(parts: int, work: Callable[[int], None]) -> float:
    """Seconds of ``work`` over all parts, as many at a time as there are threads."""

    def one(part: int) -> None:
        torch.set_num_threads(1)
        with torch.inference_mode():
            work(part)

    began = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(one, range(parts)))
    return time.perf_counter() - began


def towers(artifacts: dict[str, Path], rows: Path, folder: Path) -> dict[str, Callable[[], float]]:
    """Interaction, tower and head alone, ours and ONNX Runtime's, over rows that are looked up already."""
    scorers = {precision: Scorer(Artifact.open(path)) for precision, path in artifacts.items()}
    scorer = scorers["fp32"]
    batches: list[Batch] = list(scorer.encode(scorer.read(pl.scan_parquet(rows)).collect()))
    ranker = scorer.ranker
    looked_up = [(ranker.tables(batch).pooled, batch.dense) for batch in batches]

    def ours(precision: str) -> float:
        def work(batch: int) -> None:
            pooled, dense_BD = looked_up[batch]
            with scorers[precision].computing():
                scorers[precision].ranker.rank(pooled, dense_BD, {})

        return over(len(batches), work)

    weights = {name: tensor.numpy() for name, tensor in ranker.dense_state().items() if "standardize" not in name}
    np.savez(folder / "tower.npz", allow_pickle=False, **weights)
    joined = [
        torch.cat([*(pooled[name] for name in ranker.fields), ranker.standardize(dense_BD)], 1)
        for pooled, dense_BD in looked_up
    ]
    np.save(folder / "tower.npy", torch.cat(joined).numpy())
    expected = np.concatenate([scorer.logits(batch) for batch in batches])

    def onnx() -> float:
        files = [folder / name for name in ("tower.npz", "tower.npy", "logits.npy")]
        said = peer_says("onnx", "onnx_tower.py", *files, THREADS)
        np.testing.assert_allclose(np.load(files[2]), expected, atol=1e-3)
        return float(said["seconds"])

    alone = {f"tower alone, {precision}": partial(ours, precision) for precision in artifacts}
    return alone | {"tower in ONNX Runtime, fp32": onnx}


def logits_off(artifacts: dict[str, Path], rows: Path) -> dict[str, float]:
    """By precision: root mean square of what its logits differ from float32's, in standard deviations of these."""
    sample = pl.scan_parquet(rows).tail(_SAMPLE).collect()
    logits = {
        name: Scorer(Artifact.open(path)).score(sample, logits=True)["click:logit"].to_numpy()
        for name, path in artifacts.items()
    }
    exact_N = logits.pop("fp32")
    return {name: float(np.sqrt(np.mean((found_N - exact_N) ** 2)) / exact_N.std()) for name, found_N in logits.items()}


def pairs(folder: Path) -> dict[str, Callable[[], float]]:
    """Pairs per second of users times candidates, and rows per second of the same pairs written flat."""
    raw, log = folder / "raw.parquet", folder / "log.parquet"
    generate(DemoConfig(rows=1_000_000, users=_USERS, user_exponent=0, items=20_000), raw)
    ids = (pl.format(name + "-{}", f"{name}_id").alias(f"{name}_id") for name in ("user", "item"))
    pl.scan_parquet(raw).with_columns(*ids).sink_parquet(log, row_group_size=1 << 17)
    rows = pl.read_parquet(log)
    users, items = (rows.unique(key, keep="last", maintain_order=True) for key in ("user_id", "item_id"))
    users = users.select("user_id", "surface")
    candidates = items.select("item_id", "tags", "price").head(_CANDIDATES)
    paths = {name: folder / name for name in ("users.parquet", "candidates.parquet", "flat")}
    users.write_parquet(paths["users.parquet"])
    candidates.write_parquet(paths["candidates.parquet"])
    paths["flat"].mkdir()
    for file in range(2 * THREADS):  # a part is of one file: that many keep all threads busy
        some = users.slice(file * _FLAT_USERS, _FLAT_USERS)
        some.join(candidates, how="cross").write_parquet(paths["flat"] / f"{file:02}.parquet")
    every, flat = len(users) * len(candidates), 2 * THREADS * _FLAT_USERS * len(candidates)
    options = JobOptions(candidates=str(paths["candidates.parquet"]))
    runs: dict[str, Callable[[], float]] = {}
    for name, pooling in _HISTORIES.items():
        config = data_config(log, history=bool(pooling)).model_copy(update={"keys": ["user_id", "item_id"]})
        dataset = prepare(config, folder / f"dataset, {name}")
        state = dataset.path / "state" if pooling else None
        sample = rows.lazy().tail(_SAMPLE)
        write_artifact_of(dataset.encoder, state, sample, folder / name, FASTEST, pooling=pooling)
        runs[f"pairs, {name}"] = partial(_rate, folder / name, paths["users.parquet"], every, options)
        runs[f"flat, {name}"] = partial(_rate, folder / name, paths["flat"], flat, JobOptions())
    return runs


def _rate(artifact: Path, rows: Path, scores: int, options: JobOptions) -> float:
    with tempfile.TemporaryDirectory(dir=artifact.parent) as out:
        began = time.perf_counter()
        result = run_job(Artifact.open(artifact), str(rows), Path(out) / "scores", options, threads=THREADS)
        assert result.rows_out == scores
        return scores / (time.perf_counter() - began)


def peak_memory(artifact: Path, rows: Path) -> int:
    """Peak bytes of a process that scores ``rows``, a file or a folder."""
    command = [sys.executable, "-m", "benchmarks.score", "--task", str(artifact), str(rows)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--task", nargs=2, metavar=("ARTIFACT", "ROWS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.task:
        artifact, rows = map(Path, asked.task)
        run_ours(artifact, rows, rows.parent)
        print(peak_rss_bytes())
        return
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
        many = folder / "many"
        many.mkdir()
        for copy in range(COPIES):
            (many / f"{copy:02}.parquet").hardlink_to(rows)
        memory = {files: peak_memory(artifacts[FASTEST], path) for files, path in ((1, rows), (COPIES, many))}
        candidates: dict[str, Callable[[], float]] = {
            f"ours, {precision}": partial(run_ours, path, rows, folder) for precision, path in artifacts.items()
        }
        candidates["FuxiCTR DCNv2"] = partial(run_peer, folder)
        candidates |= {f"{stage} alone": run for stage, run in stages(artifacts[FASTEST], rows, folder).items()}
        seconds = in_turns(candidates | towers(artifacts, rows, folder), asked.rounds)
        (folder / "pairs").mkdir()
        rates = in_turns(pairs(folder / "pairs"), asked.rounds)
        differences = logits_off(artifacts, rows)
    print(table(("", "rows/s"), [(name, spread([asked.rows / s for s in took])) for name, took in seconds.items()]))
    print()
    print(table(("pairs", "scores/s"), [(name, spread(measured)) for name, measured in rates.items()]))
    print()
    print(
        table(("rows", "peak MiB"), [(f"{asked.rows * files:,}", f"{peak >> 20:,}") for files, peak in memory.items()])
    )
    median = {name: statistics.median(values) for name, values in (seconds | rates).items()}
    alone = sum(median[f"{stage} alone"] for stage in ("scan + encode", "lookup + tower", "write"))
    peer, onnx = median["FuxiCTR DCNv2"], median["tower in ONNX Runtime, fp32"]
    figures = {"vs_stages": median[f"ours, {FASTEST}"] / alone}
    for precision in PRECISIONS:
        ours, suffix = median[f"ours, {precision}"], "" if precision == FASTEST else f"_{precision}"
        figures[f"vs_fuxictr{suffix}"] = peer / ours
        figures[f"tower_vs_onnx{suffix}"] = onnx / median[f"tower alone, {precision}"]
        figures[f"rows_per_s{suffix}"] = asked.rows / ours
    figures |= {f"logits_off_{precision}": off for precision, off in differences.items()}
    figures |= {
        "pairs_vs_flat": median["pairs, attention"] / median["flat, attention"],
        "pairs_vs_flat_mean": median["pairs, mean"] / median["flat, mean"],
        "pairs_vs_flat_ids": median["pairs, ids"] / median["flat, ids"],
        "peak_memory_ratio": memory[COPIES] / memory[1],
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))


if __name__ == "__main__":
    main()
