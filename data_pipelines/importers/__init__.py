"""Public data sets, as their publishers wrote them, made ordinary Parquet logs."""
