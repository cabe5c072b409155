"""The built-in tasks, each next to its payload. A new module is listed here."""

_MODULES = (
    *("email", "file.archive", "file.convert", "file.hash", "file.split"),
    *("http.download", "http.gather", "http.request", "http.webhook"),
    *("mongo.export", "mongo.find", "mongo.imports", "mongo.write"),
    *("sql.execute", "sql.export", "sql.imports", "sql.query"),
)
BUILT_IN = tuple(f"{__name__}.{name}" for name in _MODULES)
