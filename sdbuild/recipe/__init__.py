"""Recipes: what a user can declare, how it is read, and what is said when it is wrong."""
