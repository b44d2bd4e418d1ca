"""What the commands share: training a language model, building environments and agents from recipes, keeping runs."""
