"""An index of embeddings on disk: built, extended, its cells and files."""
