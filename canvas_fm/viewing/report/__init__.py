"""Reports that compare methods: figures, tables, page."""
