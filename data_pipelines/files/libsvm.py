"""Lines of libsvm and libffm."""

from collections.abc import Sequence
from typing import ClassVar, Literal

import polars as pl

from data_pipelines.config.base import register
from data_pipelines.files.base import FileFormat, Scan


@register
class LibsvmFormat(FileFormat):
    """Lines ``label index:value ...`` (libsvm) or ``label field:index:value ...`` (libffm).

    They become the columns ``label``, ``features`` (list of text: ``index``, or ``field:index``) and ``values``.
    """

    suffixes: ClassVar[tuple[str, ...]] = (".svm", ".libsvm", ".ffm", ".libffm")
    kind: Literal["libsvm"] = "libsvm"

    def scan(self, location: str, paths: Sequence[str], needed: frozenset[str] | None = None) -> Scan:
        line = pl.col("line").str.split("#").list.first().str.strip_chars()
        words = line.str.replace_all(r"\s+", " ").str.split(" ")
        number = pl.element().str.extract(r"([^:]*)$").cast(pl.Float32, strict=False)
        return Scan(
            pl.scan_lines(list(paths), name="line", glob="://" in paths[0])
            .filter(line != "")
            .select(
                label=words.list.first(),
                features=words.list.slice(1).list.eval(pl.element().str.extract(r"^(.*):[^:]*$")),
                values=words.list.slice(1).list.eval(number),
            )
        )
