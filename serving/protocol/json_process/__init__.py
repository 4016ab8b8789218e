"""Large JSON bodies are parsed in a process of their own, so that the service's loop answers meanwhile."""
