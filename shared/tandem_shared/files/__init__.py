"""The file store: names, whole files, resumable uploads."""
