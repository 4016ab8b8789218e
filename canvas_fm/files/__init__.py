"""Files on disk: atomic writes, locks, checksums, strict YAML."""
