"""Finished runs as files of results, statistics, tables, pictures and pages."""
