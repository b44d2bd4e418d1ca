"""``python -m dhmm_rl.recipes`` lists the recipes that ship."""

from dhmm_rl.recipes import list_recipes, recipe_folder

for kind in ("agents", "envs"):
    print(f"{kind} ({recipe_folder(kind)})")
    for name, description in list_recipes(kind).items():
        print(f"  {name:<16} {description}")
