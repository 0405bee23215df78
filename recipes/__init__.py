"""The recipes, one file a job. They are scripts: nothing imports them."""
