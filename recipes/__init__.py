"""The recipes, one file per job. They are scripts: nothing imports them."""
