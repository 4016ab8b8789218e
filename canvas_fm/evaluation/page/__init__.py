"""Pages and figures that reports and tables share."""
