"""Captions by people: a table of what is wrong with them, editing, export and import, and a local web page. Light."""
