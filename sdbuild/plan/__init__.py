"""From a recipe to steps, and from steps to the files that DVC reads; pure."""
