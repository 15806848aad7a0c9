"""What every room does with files: paths that stay inside, headers, atomic writes. Imports only `errors`."""
