"""Starting the service: stand-alone, supervised, as a Bento."""
