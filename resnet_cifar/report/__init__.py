"""Finished runs as files, statistics, tables, pictures and pages."""
