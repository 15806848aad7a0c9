"""File helpers for all packages: safe paths, headers, atomic writes, text for terminals. Imports only `errors`."""
