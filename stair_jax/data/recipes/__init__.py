"""Recipes, a file each: seeds become sets; `data.recipe` finds every `RECIPE` in here."""
