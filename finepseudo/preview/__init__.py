"""What a recipe would do, before it is started: plan, resources, cost, and what is not there. No torch, no Ray."""
