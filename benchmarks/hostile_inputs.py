"""Inputs of a hostile user, from a seed: artifacts, archives, files of rows, configs, and requests."""

import io
import json
import lzma
import os
import random
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from data_pipelines.disk.storage import checksum
from serving.http.service import ARROW

_JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Command:
    """Arguments of ``recsys``, and the bytes that are hostile."""

    kind: str
    arguments: list[str]
    bytes: int


@dataclass(frozen=True)
class Sent:
    """A request to the service, and the status that refuses it where there is only one."""

    kind: str
    method: str
    path: str
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    status: int | None = None


def artifacts(
    artifact: Path, rows: Path, folder: Path, outside: Path, address: str, rng: random.Random
) -> Iterator[Command]:
    """Artifacts whose manifest, tensors or JSON are not what they should be; by path and by address."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    names = [
        str(outside / "written"),
        "../../outside/written",
        "a/../../../outside/written",
        "..",
        ".",
        "",
        "/",
        "a\0b",
    ]
    names += ["x" * 300, "manifest.json/x", "/dev/null", "~/written", "a\\..\\b", "\udcff", "CON", "a//b", "./a", "-rf"]
    victim = next(iter(manifest["files"]))
    for number, name in enumerate(names):
        changed = json.loads(json.dumps(manifest))
        changed["files"][name] = changed["files"][victim]
        for by in ("path", "address"):
            yield _scored("manifest names", artifact, rows, folder / f"name{number}{by}", _dump(changed), by, address)
    values: list[object] = [-1, 10**30, "1", None, [], {}, 1.5, True]
    for number, value in enumerate(values):
        changed = json.loads(json.dumps(manifest))
        changed["files"][victim]["bytes"] = value
        yield _scored("manifest values", artifact, rows, folder / f"value{number}", _dump(changed))
    for number, text in enumerate(
        (b"", b"[", b"[" * 100_000, b"{}", b"[]", b"null", b"\xff", b'{"files":{}}', b"9" * 9999)
    ):
        yield _scored("manifest JSON", artifact, rows, folder / f"json{number}", text)
    for file in ("tables.safetensors", "dense.safetensors", "model.json", "encoder.json"):
        if not (artifact / file).exists():
            continue
        for number in range(15):
            content = bytearray((artifact / file).read_bytes())
            if file.endswith(".safetensors") and number < 9:
                content = bytearray(_header(bytes(content), number))
            else:
                for _ in range(rng.randrange(1, 6)):
                    content[rng.randrange(min(len(content), 4000))] = rng.randrange(256)
            yield _resealed(file, bytes(content), artifact, rows, folder / f"{file}{number}")


def _header(content: bytes, number: int) -> bytes:
    """A safetensors file with a header that tells lies."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        entry |= [
            {"data_offsets": [begin + 10**9, end + 10**9]},
            {"data_offsets": [end, begin]},
            {"data_offsets": [-8, end]},
            {"shape": [10**12, 8]},
            {"shape": [-1, 8]},
            {"dtype": "F64"},
            {"dtype": "X9"},
            {"shape": [2**62, 4]},
            {"data_offsets": [begin, 2**63]},
        ][number]
    told = json.dumps(header).encode()
    return struct.pack("<Q", len(told)) + told + content[8 + size :]


def archives(packed: Path, rows: Path, folder: Path) -> Iterator[Command]:
    """Packed artifacts whose streams are bombs, cut off or not streams at all."""
    bomb = lzma.compress(bytes(300 << 20), preset=1)
    for path in sorted(packed.rglob("*.xz")):
        whole = path.read_bytes()
        for number, content in enumerate(
            (bomb, whole[: len(whole) // 2], b"", b"\xfd7zXZ\x00" + bytes(100), whole + bomb)
        ):
            yield _resealed(path.relative_to(packed).as_posix(), content, packed, rows, folder / f"{path.name}{number}")


def files_of_rows(artifact: Path, rows: Path, folder: Path, rng: random.Random) -> Iterator[Command]:
    """Parquet and Arrow files that are cut off or changed."""
    frame = pl.read_parquet(rows).head(500)
    folder.mkdir(parents=True)
    for number in range(60):
        path = folder / f"rows{number}.{('parquet', 'arrow')[number % 2]}"
        frame.write_parquet(path) if number % 2 == 0 else frame.write_ipc(path)
        content = bytearray(path.read_bytes())
        for _ in range(rng.randrange(0, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        path.write_bytes(content[: rng.randrange(len(content))] if number % 3 == 0 else content)
        arguments = ["score", str(artifact), str(path), str(folder / f"scores{number}")]
        yield Command("Parquet and Arrow files", arguments, len(content))


def configs(folder: Path) -> Iterator[Command]:
    """Configs that are no configs."""
    folder.mkdir(parents=True)
    head = "data: {log: none.parquet, tasks: {click: {column: click}}, features: {item: {kind: id}}}\n"
    bomb = "a: &a0 [1]\n" + "".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(9))
    merge = "a: &a0 {x: 1}\n" + "".join(f"b{i}: &a{i + 1} {{<<: [{', '.join([f'*a{i}'] * 10)}]}}\n" for i in range(9))
    texts = [bomb, merge, "a: &a [*a]", "[" * 20_000, "a: " + "{b: " * 5000, "a: " + "9" * 5000, "a: 2001-99-99"]
    texts += [
        "",
        "1",
        "- 1",
        "a: !!python/object/apply:os.system [id]",
        "!!binary x",
        "? [1]\n: 2",
        "a: \0",
        "a: *none",
        "%YAML 9",
    ]
    lines = [
        "seed: -1",
        "seed: 1e999",
        f"seed: {10**400}",
        "train: {epochs: .nan}",
        "train: {batch_size: .inf}",
        "name: [1]",
    ]
    lines += [
        "train: {epohcs: 1}",
        "1: 2",
        "? {a: 1}\n: 1",
        "model: {dim: 0}",
        "model: 7",
        "data: {log: none}",
        "name: ${NOT_SET}",
    ]
    lines += ["train: {batch_size: 1_000_000_000_000_000_000_000}", "export: {packed: {}}", "x: " + "y" * (5 << 20)]
    for number, text in enumerate([*texts, *(head + line for line in lines)]):
        path = folder / f"config{number}.yaml"
        path.write_text(text)
        yield Command("YAML configs", ["prepare", str(path), str(folder / f"dataset{number}")], len(text))


def requests(frame: pl.DataFrame, outside: Path, rng: random.Random) -> Iterator[Sent]:
    """Requests with bodies, names, hosts, origins and methods that are not a client's."""
    yield from _arrow_requests(frame, rng)
    yield from _json_requests()
    yield from _paths(outside)
    yield from _heads()


def _arrow_requests(frame: pl.DataFrame, rng: random.Random) -> Iterator[Sent]:
    whole, squeezed = _stream(frame.to_arrow()), _stream(frame.to_arrow(), compression="zstd")
    for number in range(80):
        content = bytearray((whole, squeezed)[number % 2])
        for _ in range(rng.randrange(1, 8)):
            content[rng.randrange(len(content))] = rng.randrange(256)
        body = bytes(content[: rng.randrange(len(content))] if number % 4 == 0 else content)
        yield Sent("Arrow bodies", "POST", "/v1/score", body, {"content-type": ARROW})
    zeros, names = np.zeros(1_000_000), [f"c{i}" for i in range(40)]
    bombs = [pa.table(dict.fromkeys(names, zeros)), pa.table({"a": ["x" * 200_000_000]})]
    bombs += [pa.table({"a": pa.DictionaryArray.from_arrays(np.zeros(9999, np.int32), ["x" * 2_000_000])})]
    bombs += [pa.table({f"c{i}": pa.nulls(9999) for i in range(5000)})]
    bombs += [pa.table({"a": pa.FixedSizeListArray.from_arrays(pa.nulls(50_000_000), 5000)})]
    for table in bombs:
        yield Sent("Arrow bombs", "POST", "/v1/score", _stream(table, compression="zstd"), {"content-type": ARROW})


def _json_requests() -> Iterator[Sent]:
    texts = ['{"rows":[' + ",".join(["{}"] * 3_000_000) + "]}", '{"rows":[{"a":' + "[" * 900_000]
    texts += ['{"rows":[' + ",".join(f'{{"k{i}":1}}' for i in range(9999)) + "]}"]
    texts += ['{"rows":[' + ",".join(f'{{"a":{{"k{i}":1}}}}' for i in range(9999)) + "]}"]
    texts += ["{" + ",".join(f'"{i}":1' for i in range(900_000)) + "}", '{"rows":[' + "1," * 3_000_000 + "1]}"]
    texts += ['{"rows":[{"a":[' + ",".join(["[0]"] * 250_000) + "]}]}", '{"rows":[{"a":' + "9" * 1_000_000 + "}]}"]
    yield from (Sent("JSON bombs", "POST", "/v1/score", text.encode(), _JSON) for text in texts)
    values = ["NaN", "1e999", "-Infinity", r'"\ud800"', "1" * 400, "[[[1]]]", '{"a": {}}', '"\\u0000"', "01", "tru", ""]
    for value in values:
        for path, text in (
            ("/v1/score", f'{{"rows": [{{"user_id": {value}, "item_id": {value}}}]}}'),
            ("/v1/jobs", f'{{"input": {value}, "output": "o"}}'),
            ("/v1/jobs", f'{{"input": "i", "output": "o", "options": {{"top_k": {value}}}}}'),
        ):
            yield Sent("JSON values", "POST", path, text.encode(), _JSON)


def _paths(outside: Path) -> Iterator[Sent]:
    places = [
        str(outside),
        "../outside",
        "*/../../outside/*",
        "**/../../../etc/*",
        "/etc/passwd",
        "file:///etc/passwd",
        "\\0",
    ]
    places += [
        "link/canary",
        "http://127.0.0.1:1/",
        "a" * 5000,
        "~root",
        "/dev/zero",
        "/proc/self/environ",
        "[",
        "{a,b}/../..",
    ]
    for place in places:
        for job in ({"input": place, "output": "o"}, {"input": "rows.parquet", "output": place}):
            yield Sent("paths of jobs", "POST", "/v1/jobs", _dump(job), _JSON)
        yield Sent("paths of jobs", "PUT", "/v1/artifacts/x", json.dumps({"path": place}).encode(), _JSON)
        yield Sent(
            "paths of pages", "GET", "/static/" + place.replace("\\0", "%00").replace("/", "%2f").replace(" ", "")
        )


def _heads() -> Iterator[Sent]:
    for host in ("evil.example", "127.0.0.1.evil.example", "evil.example:8080", "", "localhost@evil.example", "[::2]"):
        for path in ("/", "/v1/jobs", "/v1/score/", "//evil.example/.."):
            yield Sent("hosts", "GET", path, headers={"host": host}, status=421)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "http://[::1", "x"):
        for path in ("/v1/artifacts/bench/live", "/v1/jobs", "/v1/score"):
            yield Sent("origins", "POST", path, b"{}", {"origin": origin}, 403)
    for number in range(30):
        yield Sent("methods", f"M{number}", "/v1/jobs", status=405)
    for coding in ("gzip", "zstd", "deflate", "br", "gzip, gzip"):
        yield Sent("content encodings", "POST", "/v1/score", os.urandom(1000), {"content-encoding": coding}, 415)


def _stream(table: pa.Table, **options: object) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(table)
    return sink.getvalue()


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


def _scored(
    kind: str, artifact: Path, rows: Path, copy: Path, manifest: bytes, by: str = "path", address: str = ""
) -> Command:
    shutil.copytree(artifact, copy)
    (copy / "manifest.json").write_bytes(manifest)
    place = f"{address}/{copy.name}" if by == "address" else str(copy)
    return Command(kind, ["score", place, str(rows), f"{copy}.scores"], len(manifest))


def _resealed(file: str, content: bytes, artifact: Path, rows: Path, copy: Path) -> Command:
    """A copy of an artifact in which one file is another, with a manifest that says so."""
    shutil.copytree(artifact, copy)
    (copy / file).write_bytes(content)
    manifest = json.loads((copy / "manifest.json").read_text())
    if file in manifest["files"]:
        manifest["files"][file] = checksum(copy / file).model_dump()
    (copy / "manifest.json").write_bytes(_dump(manifest))
    return Command(f"resealed {file}", ["score", str(copy), str(rows), f"{copy}.scores"], len(content))
