"""Points in XML files: cellfinder, WebKnossos, TrackMate."""
