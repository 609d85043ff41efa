"""MovieLens-1M from its raw files: ``::`` between fields, Latin-1, three files to be joined."""

import io
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from data_pipelines.disk.storage import new_file
from data_pipelines.errors import UserError

_RATINGS = {"user_id": pl.Int64, "movie_id": pl.Int64, "rating": pl.Int8, "timestamp": pl.Int64}
_USERS = {"user_id": pl.Int64, "gender": pl.String, "age": pl.Int8, "occupation": pl.Int8, "zip": pl.String}
_MOVIES = {"movie_id": pl.Int64, "title": pl.String, "genres": pl.String}


def convert(path: Path, out: Path) -> int:
    """Write the ratings in the folder ``path`` as a Parquet log ``out``, in the order of ``ratings.dat``; count rows.

    Columns: ``user_id, movie_id, rating, timestamp, gender, age, occupation, zip, title, year, genres``. ``zip`` stays
    text (it has leading zeros), ``year`` is the one at the end of the title, ``genres`` a list.

    Raises:
        UserError: A file is missing, or a line of it is not as described in the README of MovieLens.
    """
    users = _read(path / "users.dat", _USERS)
    movies = _read(path / "movies.dat", _MOVIES).with_columns(
        pl.col("title").str.replace(r"\s*\(\d{4}\)\s*$", ""),
        pl.col("title").str.extract(r"\((\d{4})\)\s*$").cast(pl.Int16).alias("year"),
        pl.col("genres").str.split("|"),
    )
    ratings = _read(path / "ratings.dat", _RATINGS).with_columns(
        pl.from_epoch("timestamp", time_unit="s").cast(pl.Datetime("us"))
    )
    log = ratings.join(users, on="user_id", how="left", maintain_order="left").join(
        movies, on="movie_id", how="left", maintain_order="left"
    )
    with new_file(out) as beside:
        log.write_parquet(beside)
    return log.height


def _read(file: Path, schema: Mapping[str, type[pl.DataType]]) -> pl.DataFrame:
    """The lines of ``file``, cut at ``::``."""
    try:
        text = file.read_text("latin-1")
    except FileNotFoundError:
        raise UserError(
            f"{file} is not there: give the folder that holds ratings.dat, users.dat, movies.dat."
        ) from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from None
    if not text.strip():
        raise UserError(f"{file} is empty: download the data set again.")
    lines = pl.read_csv(
        io.BytesIO(text.encode()), separator="\0", has_header=False, new_columns=["line"], quote_char=None
    ).select(pl.col("line").str.strip_chars_end("\r"))
    fields = pl.col("line").str.split("::")
    frame = lines.select(
        fields.list.len().alias("__fields"),
        *(
            fields.list.get(i, null_on_oob=True).cast(dtype, strict=False).alias(name)
            for i, (name, dtype) in enumerate(schema.items())
        ),
    )
    damaged = frame.with_row_index(":line", 1).filter(
        (pl.col("__fields") != len(schema)) | pl.any_horizontal(pl.col(name).is_null() for name in schema)
    )
    if damaged.height:
        raise UserError(f"{file}, line {damaged[':line'][0]} is not {'::'.join(schema)}: download the data set again.")
    return frame.drop("__fields")
