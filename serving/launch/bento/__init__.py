"""BentoML: service, package, model store, supervisor."""
